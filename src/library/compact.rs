//! Giving space back.

use serde::Serialize;

use super::commit_point;
use super::reader::folder_bytes;
use super::writer::Writer;
use crate::error::{Error, Result};

/// What [`Writer::compact`] did.
#[derive(Debug, Clone, PartialEq, Eq, Serialize)]
pub struct Compacted {
    /// All files of the library, before and after.
    pub before_bytes: u64,
    pub after_bytes: u64,
}

impl Writer {
    /// Brings the indexes of words into as few pieces as they can have, gives free pages back to the
    /// file system, and cuts the logs to nothing. Rows of recipes that others have taken over from
    /// went when the library was opened. The files are not copied, so no room is needed beside
    /// them.
    ///
    /// Errors: `Unavailable` where another process that reads keeps the logs from being emptied.
    pub fn compact(&mut self) -> Result<Compacted> {
        let before_bytes = folder_bytes(&self.folder)?;
        self.record.write(|sql| {
            sql.execute("INSERT INTO spoken (spoken) VALUES ('optimize')", [])?;
            sql.execute("INSERT INTO written (written) VALUES ('optimize')", [])?;
            Ok(())
        })?;
        commit_point::reached("compact-words-joined");
        let mut emptied = true;
        for database in [&mut self.features, &mut self.record] {
            database.give_back(None)?;
            commit_point::reached("compact-given-back");
            emptied &= database.empty_log()?;
        }
        if !emptied {
            return Err(Error::unavailable(format!(
                "a process that reads {} keeps its files from shrinking: end that process, and \
                 compact again",
                self.folder.display()
            )));
        }
        Ok(Compacted { before_bytes, after_bytes: folder_bytes(&self.folder)? })
    }
}
