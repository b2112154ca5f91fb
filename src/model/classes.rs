//! Names of an encoder's classes, from a tab-separated file.

use crate::error::{Error, Result};

/// One class. Two classes may have the same name (ImageNet has two cranes): the index is the key.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct ClassName {
    /// Place in the encoder's output.
    pub index: usize,
    /// WordNet's id of the synset, where the classes are synsets.
    pub wnid: String,
    pub name: String,
    /// Every way to say it, the commonest first.
    pub lemmas: Vec<String>,
}

/// Reads lines of index, wnid, name and lemmas (separated by commas) below a header; the indexes
/// must run from 0 without a gap.
pub(super) fn read(file: &str, content: &[u8]) -> Result<Vec<ClassName>> {
    let wrong = |line: usize, why: &str| Error::corrupt(format!("{file}:{}: {why}", line + 1));
    let text = std::str::from_utf8(content).map_err(|_| wrong(0, "the file is not UTF-8"))?;
    let mut names = Vec::new();
    for (line, row) in text.lines().enumerate().skip(1) {
        let [index, wnid, name, lemmas] = row.split('\t').collect::<Vec<_>>()[..] else {
            return Err(wrong(line, "expected index, wnid, name and lemmas, separated by tabs"));
        };
        if index.parse() != Ok(names.len()) {
            return Err(wrong(line, &format!("expected the index {}", names.len())));
        }
        names.push(ClassName {
            index: names.len(),
            wnid: wnid.to_owned(),
            name: name.to_owned(),
            lemmas: lemmas.split(", ").map(str::to_owned).collect(),
        });
    }
    Ok(names)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_missing_class_is_reported_with_its_line() {
        let text = "index\twnid\tname\tlemmas\n0\tn1\ta\ta, b\n2\tn2\tc\tc\n";
        let error = read("x.tsv", text.as_bytes()).unwrap_err().to_string();
        assert_eq!(error, "x.tsv:3: expected the index 1");
        let first = text.lines().take(2).collect::<Vec<_>>().join("\n");
        assert_eq!(read("x.tsv", first.as_bytes()).unwrap()[0].lemmas, ["a", "b"]);
    }
}
