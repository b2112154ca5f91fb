//! Subtitle files that lie beside a film: `film.srt`, `film.en.srt`, `film.pt-BR.forced.vtt`.

use std::collections::HashMap;
use std::ffi::{OsStr, OsString};
use std::os::unix::ffi::OsStrExt;
use std::path::{Path, PathBuf};
use std::sync::{Arc, Mutex, PoisonError};

/// Extensions of the subtitle formats that are read.
const EXTENSIONS: [&str; 4] = ["srt", "vtt", "ass", "ssa"];
/// Parts of a name that say what a file is for, not its language.
const REMARKS: [&str; 6] = ["forced", "sdh", "cc", "default", "full", "signs"];
/// Parts of a subtitle file's name between the film's name and the extension.
const MAX_REMARKS: usize = 3;
/// No folder is searched beyond this many entries.
const MAX_ENTRIES: usize = 100_000;

/// A subtitle file of a film.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Sidecar {
    pub path: PathBuf,
    /// BCP-47, from the file's name.
    pub language: Option<String>,
}

/// Finds the subtitle files of films. Each folder is read once, so that a folder of ten thousand
/// films is not read ten thousand times; what comes into it later is not seen.
#[derive(Debug, Default)]
pub struct Sidecars {
    folders: Mutex<HashMap<PathBuf, Arc<Folder>>>,
}

/// Names of subtitle files, by what the film's name may be without its extension, in small letters.
type Folder = HashMap<Vec<u8>, Vec<OsString>>;

impl Sidecars {
    /// The subtitle files in the film's folder that bear its name, in order of their own. Letters'
    /// case does not matter, and names need not be UTF-8. A folder that cannot be read has none.
    pub fn of(&self, film: &Path) -> Vec<Sidecar> {
        let Some(stem) = film.file_stem() else { return Vec::new() };
        let folder = match film.parent() {
            Some(folder) if !folder.as_os_str().is_empty() => folder,
            _ => Path::new("."),
        };
        let names = {
            // Only whole listings are ever put in.
            let mut folders = self.folders.lock().unwrap_or_else(PoisonError::into_inner);
            let listing = folders.entry(folder.to_owned());
            Arc::clone(listing.or_insert_with(|| Arc::new(subtitles_in(folder))))
        };
        let names = names.get(&small_letters(stem.as_bytes())).into_iter().flatten();
        let mut found: Vec<Sidecar> = names
            .filter_map(|name| {
                let language = match_name(name, stem)?;
                let path = folder.join(name);
                path.is_file().then_some(Sidecar { path, language })
            })
            .collect();
        found.sort_by(|a, b| a.path.cmp(&b.path));
        found
    }
}

fn subtitles_in(folder: &Path) -> Folder {
    let mut names = Folder::new();
    let Ok(entries) = std::fs::read_dir(folder) else { return names };
    for name in entries.take(MAX_ENTRIES).flatten().map(|entry| entry.file_name()) {
        let bytes = name.as_bytes();
        let extension = bytes.rsplit(|byte| *byte == b'.').next().unwrap_or_default();
        if !EXTENSIONS.iter().any(|known| extension.eq_ignore_ascii_case(known.as_bytes())) {
            continue;
        }
        let dots = (0..bytes.len()).rev().filter(|at| bytes[*at] == b'.');
        for dot in dots.take(MAX_REMARKS + 1) {
            names.entry(small_letters(&bytes[..dot])).or_default().push(name.clone());
        }
    }
    names
}

fn small_letters(name: &[u8]) -> Vec<u8> {
    match std::str::from_utf8(name) {
        Ok(name) => name.to_lowercase().into_bytes(),
        Err(_) => name.to_ascii_lowercase(),
    }
}

/// The language, if `name` is `stem`, parts between dots, and a subtitle extension.
fn match_name(name: &OsStr, stem: &OsStr) -> Option<Option<String>> {
    let (name, stem) = (name.as_bytes(), stem.as_bytes());
    let start = name.get(..stem.len())?;
    if small_letters(start) != small_letters(stem) {
        return None;
    }
    let rest = std::str::from_utf8(name.get(stem.len()..)?).ok()?.strip_prefix('.')?;
    let mut parts: Vec<&str> = rest.split('.').collect();
    let extension = parts.pop()?.to_ascii_lowercase();
    if !EXTENSIONS.contains(&extension.as_str()) || parts.len() > MAX_REMARKS {
        return None;
    }
    let language = parts
        .iter()
        .filter(|part| !REMARKS.contains(&part.to_ascii_lowercase().as_str()))
        .find_map(|part| bcp47(part));
    Some(language)
}

/// A language tag in BCP-47's form (`en`, `pt-BR`, `zh-Hans`) from what containers and file names
/// write (`eng`, `pt_br`, `English`). `None` where it is none, or says that it is not known.
pub(super) fn bcp47(text: &str) -> Option<String> {
    let mut parts = text.trim().split(['-', '_']);
    let first = parts.next()?.to_ascii_lowercase();
    if !(2..=8).contains(&first.len()) || !first.bytes().all(|byte| byte.is_ascii_lowercase()) {
        return None;
    }
    let known = LANGUAGES.iter().find(|(short, long, names)| {
        first == *short || long.contains(&first.as_str()) || first == names.to_ascii_lowercase()
    });
    let language = match known {
        Some((short, _, _)) => (*short).to_owned(),
        None if first.len() <= 3 && !["und", "mul", "zxx", "mis", "qaa"].contains(&&*first) => {
            first
        }
        None => return None,
    };
    let mut tag = language;
    for part in parts {
        let is_plain = part.bytes().all(|byte| byte.is_ascii_alphanumeric());
        match part.len() {
            2 if is_plain => tag.push_str(&format!("-{}", part.to_ascii_uppercase())),
            3 if part.bytes().all(|byte| byte.is_ascii_digit()) => {
                tag.push_str(&format!("-{part}"))
            }
            4 if is_plain => {
                let (head, tail) = part.split_at(1);
                let (head, tail) = (head.to_ascii_uppercase(), tail.to_ascii_lowercase());
                tag.push_str(&format!("-{head}{tail}"));
            }
            _ => return None,
        }
    }
    Some(tag)
}

/// Languages with a two-letter code (ISO 639-1), their three-letter codes (ISO 639-2, both forms)
/// and English names. Others keep their three letters, which BCP-47 allows.
const LANGUAGES: [(&str, &[&str], &str); 100] = [
    ("af", &["afr"], "Afrikaans"),
    ("am", &["amh"], "Amharic"),
    ("ar", &["ara"], "Arabic"),
    ("as", &["asm"], "Assamese"),
    ("az", &["aze"], "Azerbaijani"),
    ("ba", &["bak"], "Bashkir"),
    ("be", &["bel"], "Belarusian"),
    ("bg", &["bul"], "Bulgarian"),
    ("bn", &["ben"], "Bengali"),
    ("bo", &["bod", "tib"], "Tibetan"),
    ("br", &["bre"], "Breton"),
    ("bs", &["bos"], "Bosnian"),
    ("ca", &["cat"], "Catalan"),
    ("cs", &["ces", "cze"], "Czech"),
    ("cy", &["cym", "wel"], "Welsh"),
    ("da", &["dan"], "Danish"),
    ("de", &["deu", "ger"], "German"),
    ("el", &["ell", "gre"], "Greek"),
    ("en", &["eng"], "English"),
    ("es", &["spa"], "Spanish"),
    ("et", &["est"], "Estonian"),
    ("eu", &["eus", "baq"], "Basque"),
    ("fa", &["fas", "per"], "Persian"),
    ("fi", &["fin"], "Finnish"),
    ("fo", &["fao"], "Faroese"),
    ("fr", &["fra", "fre"], "French"),
    ("ga", &["gle"], "Irish"),
    ("gl", &["glg"], "Galician"),
    ("gu", &["guj"], "Gujarati"),
    ("ha", &["hau"], "Hausa"),
    ("he", &["heb"], "Hebrew"),
    ("hi", &["hin"], "Hindi"),
    ("hr", &["hrv"], "Croatian"),
    ("ht", &["hat"], "Haitian"),
    ("hu", &["hun"], "Hungarian"),
    ("hy", &["hye", "arm"], "Armenian"),
    ("id", &["ind"], "Indonesian"),
    ("is", &["isl", "ice"], "Icelandic"),
    ("it", &["ita"], "Italian"),
    ("ja", &["jpn"], "Japanese"),
    ("jv", &["jav"], "Javanese"),
    ("ka", &["kat", "geo"], "Georgian"),
    ("kk", &["kaz"], "Kazakh"),
    ("km", &["khm"], "Khmer"),
    ("kn", &["kan"], "Kannada"),
    ("ko", &["kor"], "Korean"),
    ("la", &["lat"], "Latin"),
    ("lb", &["ltz"], "Luxembourgish"),
    ("ln", &["lin"], "Lingala"),
    ("lo", &["lao"], "Lao"),
    ("lt", &["lit"], "Lithuanian"),
    ("lv", &["lav"], "Latvian"),
    ("mg", &["mlg"], "Malagasy"),
    ("mi", &["mri", "mao"], "Maori"),
    ("mk", &["mkd", "mac"], "Macedonian"),
    ("ml", &["mal"], "Malayalam"),
    ("mn", &["mon"], "Mongolian"),
    ("mr", &["mar"], "Marathi"),
    ("ms", &["msa", "may"], "Malay"),
    ("mt", &["mlt"], "Maltese"),
    ("my", &["mya", "bur"], "Burmese"),
    ("nb", &["nob"], "Bokmal"),
    ("ne", &["nep"], "Nepali"),
    ("nl", &["nld", "dut"], "Dutch"),
    ("nn", &["nno"], "Nynorsk"),
    ("no", &["nor"], "Norwegian"),
    ("oc", &["oci"], "Occitan"),
    ("pa", &["pan"], "Punjabi"),
    ("pl", &["pol"], "Polish"),
    ("ps", &["pus"], "Pashto"),
    ("pt", &["por"], "Portuguese"),
    ("ro", &["ron", "rum"], "Romanian"),
    ("ru", &["rus"], "Russian"),
    ("sa", &["san"], "Sanskrit"),
    ("sd", &["snd"], "Sindhi"),
    ("si", &["sin"], "Sinhala"),
    ("sk", &["slk", "slo"], "Slovak"),
    ("sl", &["slv"], "Slovenian"),
    ("sn", &["sna"], "Shona"),
    ("so", &["som"], "Somali"),
    ("sq", &["sqi", "alb"], "Albanian"),
    ("sr", &["srp"], "Serbian"),
    ("su", &["sun"], "Sundanese"),
    ("sv", &["swe"], "Swedish"),
    ("sw", &["swa"], "Swahili"),
    ("ta", &["tam"], "Tamil"),
    ("te", &["tel"], "Telugu"),
    ("tg", &["tgk"], "Tajik"),
    ("th", &["tha"], "Thai"),
    ("tk", &["tuk"], "Turkmen"),
    ("tl", &["tgl"], "Tagalog"),
    ("tr", &["tur"], "Turkish"),
    ("tt", &["tat"], "Tatar"),
    ("uk", &["ukr"], "Ukrainian"),
    ("ur", &["urd"], "Urdu"),
    ("uz", &["uzb"], "Uzbek"),
    ("vi", &["vie"], "Vietnamese"),
    ("yi", &["yid"], "Yiddish"),
    ("yo", &["yor"], "Yoruba"),
    ("zh", &["zho", "chi"], "Chinese"),
];

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_films_subtitles_are_found_whatever_their_case() {
        let folder = tempfile::tempdir().unwrap();
        for name in [
            "Film.mp4",
            "film.srt",
            "FILM.EN.SRT",
            "film.pt-br.forced.vtt",
            "film 2.srt",
            "filmography.srt",
            "film.txt",
            "film.sdh.ass",
        ] {
            std::fs::write(folder.path().join(name), "").unwrap();
        }
        let found: Vec<(String, Option<String>)> = Sidecars::default()
            .of(&folder.path().join("Film.mp4"))
            .into_iter()
            .map(|found| {
                (found.path.file_name().unwrap().to_str().unwrap().to_owned(), found.language)
            })
            .collect();
        let expected = [
            ("FILM.EN.SRT", Some("en")),
            ("film.pt-br.forced.vtt", Some("pt-BR")),
            ("film.sdh.ass", None),
            ("film.srt", None),
        ];
        assert_eq!(
            found,
            expected.map(|(name, language)| (name.to_owned(), language.map(str::to_owned)))
        );
    }

    #[test]
    fn a_name_that_is_not_utf8_has_its_subtitles_too() {
        let folder = tempfile::tempdir().unwrap();
        let name = |text: &[u8]| folder.path().join(OsStr::from_bytes(text));
        std::fs::write(name(b"f\xfflm.de.srt"), "").unwrap();
        let found = Sidecars::default().of(&name(b"f\xfflm.mkv"));
        assert_eq!(found.len(), 1);
        assert_eq!(found[0].language.as_deref(), Some("de"));
    }

    #[test]
    fn containers_and_whisper_mean_the_same_languages() {
        for (stated, whisper) in [("nob", "no"), ("fil", "tl"), ("jav", "jw"), ("tam", "ta")] {
            assert_eq!(super::super::spoken_code(&bcp47(stated).unwrap()), whisper);
        }
    }

    #[test]
    fn languages_are_brought_into_one_form() {
        for (text, tag) in [
            ("eng", Some("en")),
            ("ger", Some("de")),
            ("tam", Some("ta")),
            ("Deutsch", None),
            ("English", Some("en")),
            ("pt_BR", Some("pt-BR")),
            ("zh-hans", Some("zh-Hans")),
            ("und", None),
            ("gsw", Some("gsw")),
            ("", None),
            ("1080p", None),
        ] {
            assert_eq!(bcp47(text).as_deref(), tag, "{text}");
        }
    }
}
