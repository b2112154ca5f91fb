//! Reports of evaluations as tables.

use crate::cli::print_line;
use crate::error::Result;
use crate::evaluate::agreement::Agreement;
use crate::evaluate::alignment::{self, Separation};
use crate::evaluate::captions::{self, Described};
use crate::evaluate::metrics::Retrieval;
use crate::evaluate::retrieval;
use crate::evaluate::zero_shot::{self, Guessed};

pub fn retrieval(report: &retrieval::Report) -> Result<()> {
    print_line(&format!(
        "{} captions, {} photos of the split {}; {} and {}\n",
        report.captions, report.photos, report.split, report.encoder, report.tower
    ))?;
    print_line("                      R@1     R@5    R@10  median rank     MRR")?;
    let study = report.study.as_ref();
    for (name, found) in [
        ("network", report.network.as_ref()),
        ("network, the study", study.map(|study| &study.network)),
        ("ConSE", Some(&report.conse)),
        ("ConSE, the study", study.map(|study| &study.conse)),
        ("both, fused", report.fused.as_ref()),
        ("chance", Some(&report.chance)),
    ] {
        let Some(found) = found else { continue };
        let Retrieval { recall_at_1, recall_at_5, recall_at_10, median_rank, .. } = found;
        let reciprocal = found.mean_reciprocal_rank.map_or("-".into(), |mrr| format!("{mrr:.4}"));
        print_line(&format!(
            "{name:<18} {recall_at_1:>6.2}  {recall_at_5:>6.2}  {recall_at_10:>6.2}  \
             {median_rank:>11.1}  {reciprocal:>6}"
        ))?;
    }
    Ok(())
}

pub fn captions(report: &captions::Report, shown: usize) -> Result<()> {
    let what = if report.sequence { "videos" } else { "photos" };
    print_line(&format!("{} {what} of the split {}\n", report.examples, report.split))?;
    print_line("                           CIDEr  BLEU-4  BLEU-1  ROUGE-L")?;
    let people = report.people.as_ref();
    for (name, found) in [
        ("written", Some(&report.found)),
        ("… the likeliest instead", Some(&report.likeliest)),
        ("consensus", report.baseline.as_ref()),
        ("written, less one", people.map(|people| &people.found)),
        ("people, less one", people.map(|people| &people.people)),
    ] {
        let Some(Agreement { bleu, rouge_l, cider }) = found else { continue };
        print_line(&format!(
            "{name:<24} {:>7.2} {:>7.2} {:>7.2} {:>8.2}",
            100.0 * cider,
            100.0 * bleu[3],
            100.0 * bleu[0],
            100.0 * rouge_l
        ))?;
    }
    if people.is_some() {
        print_line("(less one: against all captions by people but the last, which is theirs)")?;
    }
    print_line("\ncaptioned  from confidence    CIDEr  BLEU-4")?;
    for covered in &report.coverage {
        print_line(&format!(
            "{:>7.0} % {:>17.3} {:>8.2} {:>7.2}",
            100.0 * covered.share,
            covered.confidence,
            100.0 * covered.cider,
            100.0 * covered.bleu_4
        ))?;
    }
    print_line("")?;
    for Described { images, caption, confidence, .. } in report.captions.iter().take(shown) {
        print_line(&format!("{}: {caption} ({confidence:.2})", images.join(", ")))?;
    }
    Ok(())
}

pub fn alignment(report: &alignment::Report) -> Result<()> {
    print_line(&format!(
        "{} pairs of {} pictures of the split {}; per cent of pairs told right (AUC)\n",
        report.pairs, report.examples, report.split
    ))?;
    print_line("                     random caption  nearest caption")?;
    for (name, found) in [
        ("alignment", Some(&report.alignment)),
        ("ConSE", report.conse.as_ref()),
        ("chance", Some(&Separation { random: 50.0, nearest: 50.0 })),
    ] {
        let Some(Separation { random, nearest }) = found else { continue };
        print_line(&format!("{name:<20} {random:>14.2} {nearest:>16.2}"))?;
    }
    Ok(())
}

pub fn zero_shot(report: &zero_shot::Report) -> Result<()> {
    let what = if report.sequence { "videos" } else { "frames" };
    print_line(&format!(
        "{} {what} of the split {}: {} with one of {} verbs, {} with one of {} objects\n",
        report.examples,
        report.split,
        report.with_verbs,
        report.verbs.len(),
        report.with_objects,
        report.objects.len()
    ))?;
    print_line("                             verb, of 1    of 5   object, of 1    of 5")?;
    for (name, Guessed { verbs, objects }) in [
        ("among all pieces", &report.open),
        ("VideoBERT, published", &report.published),
        ("among verbs and objects", &report.listed),
        ("without the picture", &report.without_picture),
        ("most frequent in train", &report.prior),
    ] {
        print_line(&format!(
            "{name:<26} {:>12.1} {:>7.1} {:>14.1} {:>7.1}",
            verbs.top_1, verbs.top_5, objects.top_1, objects.top_5
        ))?;
    }
    Ok(())
}
