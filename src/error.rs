//! The one error type. Every failure has a [`Kind`], which decides what is done about it, a message
//! that a user can act on, and the context in which it happened.

use std::error::Error as StdError;
use std::fmt;

use crate::time::Timestamp;

pub type Result<T, E = Error> = std::result::Result<T, E>;

/// What a failure is, as far as deciding what to do next goes.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash, serde::Serialize, serde::Deserialize)]
#[serde(rename_all = "snake_case")]
pub enum Kind {
    /// What the user gave is wrong; the message says which part and how to mend it.
    InvalidInput,
    /// A named thing is not there.
    NotFound,
    /// Understood, but not something this build or machine can do.
    Unsupported,
    /// Data that break their own format: skipped, counted, and noted as a gap.
    Corrupt,
    /// Not reachable now. A live source retries for ever; a file fails.
    Unavailable,
    /// A limit (memory, time, disk) was reached.
    Exhausted,
    /// The user asked to stop.
    Cancelled,
    /// A bug in Cinelex.
    Internal,
}

impl fmt::Display for Kind {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(match self {
            Kind::InvalidInput => "invalid input",
            Kind::NotFound => "not found",
            Kind::Unsupported => "unsupported",
            Kind::Corrupt => "corrupt",
            Kind::Unavailable => "unavailable",
            Kind::Exhausted => "limit reached",
            Kind::Cancelled => "cancelled",
            Kind::Internal => "internal error",
        })
    }
}

/// A failure with its context. Displayed as `source: message (stage, at time, byte n): cause`.
#[derive(Debug)]
pub struct Error {
    // Boxed, so that a `Result` stays one word wide on the hot path.
    inner: Box<Inner>,
}

#[derive(Debug)]
struct Inner {
    kind: Kind,
    message: String,
    source: Option<String>,
    stage: Option<&'static str>,
    at: Option<Timestamp>,
    byte: Option<u64>,
    cause: Option<Box<dyn StdError + Send + Sync>>,
}

impl Error {
    pub fn new(kind: Kind, message: impl Into<String>) -> Self {
        Error {
            inner: Box::new(Inner {
                kind,
                message: message.into(),
                source: None,
                stage: None,
                at: None,
                byte: None,
                cause: None,
            }),
        }
    }

    pub fn invalid_input(message: impl Into<String>) -> Self {
        Self::new(Kind::InvalidInput, message)
    }

    pub fn not_found(message: impl Into<String>) -> Self {
        Self::new(Kind::NotFound, message)
    }

    pub fn unsupported(message: impl Into<String>) -> Self {
        Self::new(Kind::Unsupported, message)
    }

    pub fn corrupt(message: impl Into<String>) -> Self {
        Self::new(Kind::Corrupt, message)
    }

    pub fn unavailable(message: impl Into<String>) -> Self {
        Self::new(Kind::Unavailable, message)
    }

    pub fn exhausted(message: impl Into<String>) -> Self {
        Self::new(Kind::Exhausted, message)
    }

    pub fn cancelled() -> Self {
        Self::new(Kind::Cancelled, "stopped by the user")
    }

    pub fn internal(message: impl Into<String>) -> Self {
        Self::new(Kind::Internal, message)
    }

    /// An operating system's error about `path`.
    pub fn io(path: impl AsRef<std::path::Path>, doing: &str, cause: std::io::Error) -> Self {
        use std::io::ErrorKind;
        let kind = match cause.kind() {
            ErrorKind::NotFound => Kind::NotFound,
            ErrorKind::StorageFull | ErrorKind::OutOfMemory | ErrorKind::QuotaExceeded => {
                Kind::Exhausted
            }
            ErrorKind::InvalidData | ErrorKind::UnexpectedEof => Kind::Corrupt,
            _ => Kind::Unavailable,
        };
        // As where SQLite finds it full.
        let why = match cause.kind() {
            ErrorKind::StorageFull => ": the disk is full",
            ErrorKind::QuotaExceeded => ": the disk quota is used up",
            _ => "",
        };
        let message = format!("cannot {doing} {}{why}", path.as_ref().display());
        Self::new(kind, message).caused_by(cause)
    }

    /// Names the source (a file, a URL without credentials) that the error is about.
    pub fn in_source(mut self, source: impl fmt::Display) -> Self {
        self.inner.source.get_or_insert_with(|| source.to_string());
        self
    }

    pub fn in_stage(mut self, stage: &'static str) -> Self {
        self.inner.stage.get_or_insert(stage);
        self
    }

    pub fn at(mut self, at: Timestamp) -> Self {
        self.inner.at.get_or_insert(at);
        self
    }

    pub fn at_byte(mut self, byte: u64) -> Self {
        self.inner.byte.get_or_insert(byte);
        self
    }

    pub fn caused_by(mut self, cause: impl Into<Box<dyn StdError + Send + Sync>>) -> Self {
        self.inner.cause = Some(cause.into());
        self
    }

    pub fn kind(&self) -> Kind {
        self.inner.kind
    }

    /// The source that the error is about, where one was named.
    pub fn source_name(&self) -> Option<&str> {
        self.inner.source.as_deref()
    }

    /// The message alone: what went wrong, and neither where nor why.
    pub fn message(&self) -> &str {
        &self.inner.message
    }

    /// The message with stage, time, byte and causes, but without the source: for reports that
    /// have named the source already.
    pub fn reason(&self) -> String {
        struct Reason<'a>(&'a Inner);
        impl fmt::Display for Reason<'_> {
            fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
                self.0.write_reason(f)
            }
        }
        Reason(&self.inner).to_string()
    }
}

impl Inner {
    fn write_reason(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(&self.message)?;
        let context: Vec<String> = [
            self.stage.map(|stage| format!("in {stage}")),
            self.at.map(|at| format!("at {at}")),
            self.byte.map(|byte| format!("byte {byte}")),
        ]
        .into_iter()
        .flatten()
        .collect();
        if !context.is_empty() {
            write!(f, " ({})", context.join(", "))?;
        }
        let mut cause: Option<&dyn StdError> = self.cause.as_deref().map(|cause| cause as _);
        while let Some(error) = cause {
            write!(f, ": {error}")?;
            cause = error.source();
        }
        Ok(())
    }
}

impl fmt::Display for Error {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        if let Some(source) = &self.inner.source {
            write!(f, "{source}: ")?;
        }
        self.inner.write_reason(f)
    }
}

// `source()` stays `None`: the causes are part of the message already, and a reporter that walks
// the chain would print them twice.
impl StdError for Error {}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn an_error_shows_its_source_context_and_causes() {
        let error = Error::corrupt("bad slice")
            .in_source("tape.ts")
            .in_stage("decode")
            .at(Timestamp::from_millis(1_500))
            .at_byte(42)
            .caused_by(std::io::Error::other("read failed"));
        assert_eq!(
            error.to_string(),
            "tape.ts: bad slice (in decode, at 0:01.500, byte 42): read failed"
        );
        assert_eq!(error.reason(), "bad slice (in decode, at 0:01.500, byte 42): read failed");
    }

    #[test]
    fn a_full_disk_is_called_so() {
        let full = std::io::Error::from_raw_os_error(rustix::io::Errno::NOSPC.raw_os_error());
        let error = Error::io("/lib/library.lock", "write to", full);
        assert_eq!(error.kind(), Kind::Exhausted);
        assert!(
            error.to_string().starts_with("cannot write to /lib/library.lock: the disk is full: "),
            "{error}"
        );
    }

    #[test]
    fn the_innermost_context_wins() {
        let error = Error::corrupt("x").in_source("inner").in_source("outer");
        assert_eq!(error.source_name(), Some("inner"));
    }
}
