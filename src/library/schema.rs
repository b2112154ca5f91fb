//! The two database files: how they are made, opened and told from other files. `docs/library.md`
//! documents the tables.

use std::os::unix::ffi::OsStrExt;
use std::os::unix::fs::FileExt;
use std::path::{Path, PathBuf};
use std::time::Duration;

use rusqlite::config::DbConfig;
use rusqlite::limits::Limit;
use rusqlite::{Connection, ErrorCode, OpenFlags, Transaction, TransactionBehavior};

use super::{digest, folded};
use crate::error::{Error, Kind, Result};

/// The version of the record's tables, in its `PRAGMA user_version`.
pub const SCHEMA_VERSION: i32 = 6;

/// That of the tables in the features' file: the second has thumbnails.
pub(super) const FEATURES_VERSION: i32 = 2;

/// The oldest version that can be read, and brought to the newest by a writer.
const OLDEST_VERSION: i32 = 1;

/// No text or blob in a library is longer.
const LONGEST_VALUE_BYTES: i32 = 64 << 20;

/// How long a statement waits for another connection's lock.
const LOCK_WAIT: Duration = Duration::from_secs(10);

/// What schema 3 has beside schema 2.
pub(super) const SINCE_3: &str = include_str!("readings.sql");

/// What schema 4 has in place of its cues and their index.
pub(super) const SINCE_4: &str = include_str!("cues.sql");

/// What schema 5 has beside schema 4.
pub(super) const SINCE_5: &str = include_str!("watches.sql");

/// What schema 6 has in place of its chunks.
pub(super) const SINCE_6: &str = include_str!("chunks.sql");

/// What the features' file has since its second version.
pub(super) const THUMBNAILS: &str = include_str!("thumbnails.sql");

/// For reading features of the first version: that there are no thumbnails.
const BEFORE_THUMBNAILS: &str = "
    CREATE TEMP VIEW thumbnails AS SELECT NULL AS key, source, recipe, start_us, NULL AS jpeg,
        NULL AS digest FROM features WHERE false;";

/// For reading a record of an older schema: that nothing is known there of how live sources were watched,
/// and nothing was deleted of them.
const BEFORE_5: &str = "
    CREATE TEMP VIEW watches AS SELECT 0 AS source, 0 AS started_us, 0 AS told_us, 0 AS ended_us,
        '' AS status WHERE false;
    CREATE TEMP VIEW kept AS SELECT 0 AS source, 0 AS first_us, 0 AS from_us, '' AS why WHERE false;";

/// For reading a record of an older schema: that nothing was read by a transformer there.
const BEFORE_3: &str = "
    CREATE TEMP VIEW readings AS SELECT key, source, recipe, start_us, end_us, NULL AS caption,
        NULL AS confidence, NULL AS alignment, NULL AS embedding, NULL AS digest
        FROM segments WHERE false;
    CREATE VIRTUAL TABLE temp.written USING fts5 (caption);";

/// For reading a record of an older schema: that its cues are as they were written, and none was heard.
fn before_4(version: i32) -> String {
    let digest = if version < 2 { "NULL AS digest" } else { "digest" };
    format!(
        "CREATE TEMP VIEW cues AS SELECT key, source, NULL AS recipe, start_us, end_us, text, \
         text AS folded, kind, language, track, confidence, words, speaker, {digest} FROM main.cues"
    )
}

/// The tables of the features' file, each with a row for a clip by `source`, `recipe` and `start_us`.
pub(super) const OF_CLIPS: [&str; 2] = ["features", "thumbnails"];

const META: &str = include_str!("meta.sql");

/// What tells the two files apart, and from other applications' files.
#[derive(Debug, Clone, Copy)]
pub(super) struct Role {
    pub file_name: &'static str,
    application_id: i32,
    version: i32,
    pub page_bytes: u32,
    pub tables: &'static str,
}

pub(super) const RECORD: Role = Role {
    file_name: "library.sqlite",
    application_id: 0x436e_6c78, // "Cnlx"
    version: SCHEMA_VERSION,
    page_bytes: 4_096,
    tables: concat!(
        include_str!("record.sql"),
        include_str!("chunks.sql"),
        include_str!("cues.sql"),
        include_str!("readings.sql"),
        include_str!("watches.sql")
    ),
};

pub(super) const FEATURES: Role = Role {
    file_name: "features.sqlite",
    application_id: 0x436e_6c46, // "CnlF"
    version: FEATURES_VERSION,
    // Six rows of 1,280 halves a page; a 4-KiB page would hold one and waste a third.
    page_bytes: 16_384,
    tables: concat!(include_str!("features.sql"), include_str!("thumbnails.sql")),
};

/// One of the two databases, with its path for messages.
#[derive(Debug)]
pub(super) struct Database {
    pub path: PathBuf,
    pub sql: Connection,
}

impl Database {
    /// Opens the file for writing; an absent or empty one gets its tables and `library_id`.
    pub fn open_or_create(folder: &Path, role: Role, library_id: &str) -> Result<Self> {
        Self::open_or_create_at(folder.join(role.file_name), role, library_id)
    }

    /// As [`Database::open_or_create`], under any name.
    pub fn open_or_create_at(path: PathBuf, role: Role, library_id: &str) -> Result<Self> {
        let flags = OpenFlags::SQLITE_OPEN_READ_WRITE
            | OpenFlags::SQLITE_OPEN_CREATE
            | OpenFlags::SQLITE_OPEN_NO_MUTEX;
        let mut database = Self::connect(&path, &path, flags)?;
        database.run(|sql| {
            if is_empty(sql)? {
                create(sql, role, library_id)?;
            }
            check_identity(sql, role)?;
            sql.pragma_update(None, "synchronous", "FULL")?;
            sql.pragma_update(None, "secure_delete", true)?;
            Ok(())
        })?;
        // What an interrupted run or a refused checkpoint left in the log goes into the file now,
        // so that no log outlives the rows that it held.
        database.empty_log()?;
        Ok(database)
    }

    /// Opens the file for reading only. Where the folder can't be written to and nobody has the
    /// library open, SQLite can't make the shared memory that its log needs; then the file is read
    /// as one that doesn't change, provided that its log is empty.
    pub fn open_to_read(folder: &Path, role: Role) -> Result<Self> {
        let path = folder.join(role.file_name);
        let flags = OpenFlags::SQLITE_OPEN_READ_ONLY | OpenFlags::SQLITE_OPEN_NO_MUTEX;
        let opened = Self::connect(&path, &path, flags).and_then(|database| database.checked(role));
        match opened {
            Err(refused) if refused.kind() == Kind::Unavailable && log_is_empty(&path) => {
                Self::open_unchanging(folder, role).map_err(|_| refused)
            }
            opened => opened,
        }
    }

    /// Opens the file as one that nobody writes to.
    pub fn open_unchanging(folder: &Path, role: Role) -> Result<Self> {
        let path = folder.join(role.file_name);
        let flags = OpenFlags::SQLITE_OPEN_READ_ONLY
            | OpenFlags::SQLITE_OPEN_NO_MUTEX
            | OpenFlags::SQLITE_OPEN_URI;
        Self::connect(&path, &unchanging(&path), flags)?.checked(role)
    }

    /// Whether the file is there and anything was ever written to it, or to its log. Making it
    /// begins with an empty file, and so does what is left of one that was cut to nothing.
    pub fn has_content(folder: &Path, role: Role) -> bool {
        [role.file_name.to_owned(), format!("{}-wal", role.file_name)]
            .iter()
            .any(|name| std::fs::metadata(folder.join(name)).is_ok_and(|file| file.len() > 0))
    }

    /// Whether the file's header says that it is this one of a library's two. False where it cannot
    /// be read.
    pub fn is_marked(folder: &Path, role: Role) -> bool {
        let mut header = [0; 72];
        let read = std::fs::File::open(folder.join(role.file_name))
            .and_then(|file| file.read_exact_at(&mut header, 0));
        read.is_ok() && header[68..] == role.application_id.to_be_bytes()
    }

    fn checked(mut self, role: Role) -> Result<Self> {
        let folder = self.path.parent().unwrap_or(&self.path).to_owned();
        self.run(|sql| {
            if is_empty(sql)? {
                return Err(Error::not_found(format!(
                    "{} is not a library yet: making it is under way or was cut off; \
                     `cinelex index` finishes it",
                    folder.display()
                )));
            }
            check_identity(sql, role)?;
            if role.file_name == RECORD.file_name {
                let version = pragma(sql, "user_version")?;
                if version < 3 {
                    sql.execute_batch(BEFORE_3)?;
                }
                if version < 4 {
                    sql.execute_batch(&before_4(version))?;
                }
                if version < 5 {
                    sql.execute_batch(BEFORE_5)?;
                }
            } else if pragma(sql, "user_version")? < FEATURES_VERSION {
                sql.execute_batch(BEFORE_THUMBNAILS)?;
            }
            Ok(())
        })?;
        Ok(self)
    }

    fn connect(path: &Path, name: &Path, flags: OpenFlags) -> Result<Self> {
        let sql = Connection::open_with_flags(name, flags)
            .map_err(|cause| Error::from(cause).in_source(path.display()))?;
        let mut database = Database { path: path.to_owned(), sql };
        database.run(|sql| {
            sql.busy_timeout(LOCK_WAIT)?;
            sql.set_limit(Limit::SQLITE_LIMIT_LENGTH, LONGEST_VALUE_BYTES)?;
            sql.set_db_config(DbConfig::SQLITE_DBCONFIG_DEFENSIVE, true)?;
            sql.set_db_config(DbConfig::SQLITE_DBCONFIG_TRUSTED_SCHEMA, false)?;
            // Without, a statement is planned anew whenever a bound (`start_us <= ?`) is given another value:
            // ten times in a search.
            sql.set_db_config(DbConfig::SQLITE_DBCONFIG_ENABLE_QPSG, true)?;
            sql.pragma_update(None, "cell_size_check", true)?;
            // Sorting must leave nothing of a forgotten source in a temporary file.
            sql.pragma_update(None, "temp_store", "MEMORY")?;
            sql.set_prepared_statement_cache_capacity(64);
            digest::install(sql)?;
            folded::install(sql)?;
            Ok(())
        })?;
        Ok(database)
    }

    /// Runs `work` on the connection; an error that is about the file names it.
    pub fn run<T>(&mut self, work: impl FnOnce(&mut Connection) -> Result<T>) -> Result<T> {
        work(&mut self.sql).map_err(|error| name_file(error, &self.path))
    }

    /// Runs `work` on one unchanging state of the file.
    pub fn read<T>(&self, work: impl FnOnce(&Transaction<'_>) -> Result<T>) -> Result<T> {
        let run = || {
            let transaction = self.sql.unchecked_transaction()?;
            work(&transaction)
        };
        run().map_err(|error| name_file(error, &self.path))
    }

    /// Runs `work` in one transaction: all of it is kept, durably, or nothing.
    pub fn write<T>(&mut self, work: impl FnOnce(&Transaction<'_>) -> Result<T>) -> Result<T> {
        self.run(|sql| {
            let transaction = sql.transaction_with_behavior(TransactionBehavior::Immediate)?;
            let value = work(&transaction)?;
            transaction.commit()?;
            Ok(value)
        })
    }

    /// Moves the write-ahead log into the file and cuts it to nothing. False where a reader is
    /// still using the log's older states.
    pub fn empty_log(&mut self) -> Result<bool> {
        self.run(|sql| {
            let busy: i64 =
                sql.query_row("PRAGMA wal_checkpoint(TRUNCATE)", [], |row| row.get(0))?;
            Ok(busy == 0)
        })
    }

    /// Gives free pages back to the file system, at most `most`. The file shrinks when its log is written
    /// back.
    pub fn give_back(&mut self, most: Option<u64>) -> Result<()> {
        self.run(|sql| {
            let most = most.map_or(String::new(), |most| format!("({most})"));
            let mut shrink = sql.prepare(&format!("PRAGMA incremental_vacuum{most}"))?;
            let mut steps = shrink.query([])?;
            while steps.next()?.is_some() {}
            Ok(())
        })
    }

    /// The version of the tables.
    pub fn version(&self) -> Result<i32> {
        self.read(|sql| pragma(sql, "user_version"))
    }

    pub fn library_id(&self) -> Result<String> {
        self.read(|sql| {
            let find = "SELECT value FROM meta WHERE name = 'library_id'";
            Ok(sql.query_row(find, [], |row| row.get(0))?)
        })
    }
}

fn name_file(error: Error, path: &Path) -> Error {
    match error.kind() {
        Kind::InvalidInput | Kind::NotFound | Kind::Cancelled => error,
        _ => error.in_source(path.display()),
    }
}

fn is_empty(sql: &Connection) -> Result<bool> {
    let tables: i64 = sql.query_row("SELECT count(*) FROM sqlite_schema", [], |row| row.get(0))?;
    Ok(tables == 0 && pragma(sql, "application_id")? == 0 && pragma(sql, "user_version")? == 0)
}

fn create(sql: &mut Connection, role: Role, library_id: &str) -> Result<()> {
    sql.pragma_update(None, "page_size", role.page_bytes)?;
    sql.pragma_update(None, "auto_vacuum", "INCREMENTAL")?;
    sql.pragma_update(None, "journal_mode", "WAL")?;
    sql.pragma_update(None, "synchronous", "FULL")?;
    let transaction = sql.transaction_with_behavior(TransactionBehavior::Immediate)?;
    transaction.execute_batch(META)?;
    transaction.execute_batch(role.tables)?;
    transaction.execute("INSERT INTO meta VALUES ('library_id', ?1)", [library_id])?;
    transaction.pragma_update(None, "application_id", role.application_id)?;
    sign(&transaction, role.version)?;
    transaction.commit()?;
    Ok(())
}

/// Notes in the file that this Cinelex made its tables, of this version.
pub(super) fn sign(sql: &Connection, version: i32) -> Result<()> {
    let sign = "INSERT OR REPLACE INTO meta VALUES ('written_by', ?1)";
    sql.execute(sign, [env!("CARGO_PKG_VERSION")])?;
    sql.pragma_update(None, "user_version", version)?;
    Ok(())
}

fn check_identity(sql: &Connection, role: Role) -> Result<()> {
    let application = pragma(sql, "application_id")?;
    if application != role.application_id {
        return Err(Error::unsupported("is another application's database, not a Cinelex library"));
    }
    let version = pragma(sql, "user_version")?;
    if version < OLDEST_VERSION {
        return Err(Error::corrupt(format!(
            "says that it is of schema version {version}, which there has never been: {DAMAGED}"
        )));
    }
    if version > role.version {
        let by = "SELECT value FROM meta WHERE name = 'written_by'";
        let by = sql.query_row(by, [], |row| row.get::<_, String>(0));
        let by = by.map_or_else(|_| "a newer Cinelex".to_owned(), |by| format!("Cinelex {by}"));
        return Err(Error::unsupported(format!(
            "has schema version {version}, which {by} wrote, and Cinelex {} knows versions up to {}: \
             use {by}",
            env!("CARGO_PKG_VERSION"),
            role.version
        )));
    }
    Ok(())
}

fn pragma(sql: &Connection, name: &str) -> Result<i32> {
    Ok(sql.pragma_query_value(None, name, |row| row.get(0))?)
}

/// `file:` address that tells SQLite that nobody writes the file.
fn unchanging(path: &Path) -> PathBuf {
    let mut address = String::from("file:");
    for &byte in path.as_os_str().as_bytes() {
        if byte.is_ascii_alphanumeric() || b"/._-".contains(&byte) {
            address.push(char::from(byte));
        } else {
            address.push_str(&format!("%{byte:02X}"));
        }
    }
    PathBuf::from(address + "?immutable=1")
}

fn log_is_empty(path: &Path) -> bool {
    let mut log = path.as_os_str().to_owned();
    log.push("-wal");
    std::fs::metadata(log).map_or(true, |log| log.len() == 0)
}

const DAMAGED: &str = "the library is damaged; `cinelex library check` says where, and `cinelex \
     library rebuild` saves what can be saved";

const NOT_A_LIBRARY: &str = "is not a Cinelex library, or damaged at its start; where it was one, \
     `cinelex library rebuild` saves what can be saved";

/// What SQLite says, as one of this project's kinds. The statements are fixed, so one that doesn't
/// compile or finds another type than it wrote tells of a damaged file.
impl From<rusqlite::Error> for Error {
    fn from(cause: rusqlite::Error) -> Self {
        use rusqlite::Error as Sql;
        let (kind, message) = match &cause {
            // A log's index, in shared memory, is a file too, and is made to grow first.
            Sql::SqliteFailure(failure, _)
                if failure.extended_code == rusqlite::ffi::SQLITE_IOERR_SHMSIZE =>
            {
                (Kind::Exhausted, "the disk is full")
            }
            Sql::SqliteFailure(failure, _) => match failure.code {
                ErrorCode::DiskFull => (Kind::Exhausted, "the disk is full"),
                ErrorCode::OutOfMemory | ErrorCode::TooBig => (Kind::Exhausted, "too large"),
                ErrorCode::DatabaseBusy | ErrorCode::DatabaseLocked => {
                    (Kind::Unavailable, "another process is using the library")
                }
                ErrorCode::NotADatabase => (Kind::Corrupt, NOT_A_LIBRARY),
                ErrorCode::DatabaseCorrupt | ErrorCode::Unknown | ErrorCode::TypeMismatch => {
                    (Kind::Corrupt, DAMAGED)
                }
                ErrorCode::ReadOnly => (Kind::Unavailable, "the library can't be written to"),
                ErrorCode::CannotOpen
                | ErrorCode::PermissionDenied
                | ErrorCode::SystemIoFailure
                | ErrorCode::FileLockingProtocolFailed => {
                    (Kind::Unavailable, "the library can't be read or written")
                }
                _ => (Kind::Internal, "a statement failed"),
            },
            Sql::FromSqlConversionFailure(..)
            | Sql::IntegralValueOutOfRange(..)
            | Sql::Utf8Error(..)
            | Sql::InvalidColumnType(..)
            | Sql::QueryReturnedNoRows => (Kind::Corrupt, DAMAGED),
            _ => (Kind::Internal, "a statement failed"),
        };
        Error::new(kind, message).caused_by(cause)
    }
}
