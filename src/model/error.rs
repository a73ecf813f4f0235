//! The one error type of API, Lua and CLI: what happened to whom, why, what to do, and whether a retry can help.

use std::fmt;

use schemars::JsonSchema;
use serde::{Deserialize, Serialize};

/// Result with Neap's error.
pub type Result<T, E = Error> = std::result::Result<T, E>;

/// What sort of failure it is; decides the HTTP status and the exit code.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize, Deserialize, JsonSchema)]
#[serde(rename_all = "snake_case")]
pub enum Kind {
    /// The input does not fit: a field, a unit, a name.
    Invalid,
    /// There is no such thing.
    NotFound,
    /// Somebody else changed it, owns it, or it exists already.
    Conflict,
    /// No valid credentials came along.
    Unauthenticated,
    /// The principal lacks the right.
    Forbidden,
    /// Whoever should answer cannot be reached or is not ready.
    Unavailable,
    /// No answer, or no result, within the time allowed.
    Timeout,
    /// This engine, kind or build cannot do it.
    Unsupported,
    /// A bound was reached: memory, size, count, ports, disk.
    Exhausted,
    /// A user's script failed.
    Script,
    /// The operation ran and ended badly (a rollout that rolled back, a command that failed).
    Failed,
    /// Stored data is damaged or of a newer format.
    Corrupt,
    /// A fault of ours.
    Internal,
}

impl Kind {
    /// The HTTP status that carries this kind.
    pub fn status(self) -> u16 {
        match self {
            Kind::Invalid => 400,
            Kind::Unauthenticated => 401,
            Kind::Forbidden => 403,
            Kind::NotFound => 404,
            Kind::Conflict => 409,
            Kind::Exhausted => 413,
            Kind::Script | Kind::Failed => 422,
            Kind::Corrupt | Kind::Internal => 500,
            Kind::Unsupported => 501,
            Kind::Unavailable => 503,
            Kind::Timeout => 504,
        }
    }

    /// The CLI's exit code: 1 failed, 2 usage, 3 script, 4 not found, 5 conflict, 6 timeout, 7 unavailable, 8 not allowed.
    pub fn exit_code(self) -> u8 {
        match self {
            Kind::Invalid | Kind::Unsupported => 2,
            Kind::Script => 3,
            Kind::NotFound => 4,
            Kind::Conflict => 5,
            Kind::Timeout => 6,
            Kind::Unavailable => 7,
            Kind::Unauthenticated | Kind::Forbidden => 8,
            Kind::Failed | Kind::Exhausted | Kind::Corrupt | Kind::Internal => 1,
        }
    }
}

/// An error as users, clients and scripts see it.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize, JsonSchema)]
pub struct Error {
    /// The sort of failure.
    pub kind: Kind,
    /// Whom it concerns, as users name it: `service "web"`; empty where there is no one thing.
    pub subject: String,
    /// What happened: lower case, no full stop.
    pub message: String,
    /// Why, where known: the lower error's words.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub cause: Option<String>,
    /// What to do about it.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub help: Option<String>,
    /// Whether the same call may succeed later without any change.
    #[serde(default)]
    pub retry: bool,
}

impl Error {
    /// An error of `kind` about `subject`.
    pub fn new(kind: Kind, subject: impl Into<String>, message: impl Into<String>) -> Self {
        let retry = matches!(kind, Kind::Unavailable | Kind::Timeout);
        Error { kind, subject: subject.into(), message: message.into(), cause: None, help: None, retry }
    }

    /// Input that does not fit.
    pub fn invalid(subject: impl Into<String>, message: impl Into<String>) -> Self {
        Error::new(Kind::Invalid, subject, message)
    }

    /// No such thing.
    pub fn not_found(subject: impl Into<String>) -> Self {
        Error::new(Kind::NotFound, subject, "not found")
    }

    /// A fault of ours.
    pub fn internal(subject: impl Into<String>, message: impl Into<String>) -> Self {
        Error::new(Kind::Internal, subject, message)
    }

    /// An operating system's error while doing `doing` to `subject`.
    pub fn io(subject: impl Into<String>, doing: &str, error: &std::io::Error) -> Self {
        let kind = match error.kind() {
            std::io::ErrorKind::NotFound => Kind::NotFound,
            std::io::ErrorKind::PermissionDenied => Kind::Forbidden,
            std::io::ErrorKind::StorageFull | std::io::ErrorKind::QuotaExceeded => Kind::Exhausted,
            // What was named is no file, or a name that no file can have: another name is needed, not another try.
            std::io::ErrorKind::IsADirectory
            | std::io::ErrorKind::NotADirectory
            | std::io::ErrorKind::InvalidFilename
            | std::io::ErrorKind::InvalidInput => Kind::Invalid,
            _ => Kind::Unavailable,
        };
        Error::new(kind, subject, format!("cannot {doing}")).cause(error.to_string())
    }

    /// Adds the lower error's words.
    #[must_use]
    pub fn cause(mut self, cause: impl fmt::Display) -> Self {
        self.cause = Some(cause.to_string());
        self
    }

    /// Adds what to do.
    #[must_use]
    pub fn help(mut self, help: impl Into<String>) -> Self {
        self.help = Some(help.into());
        self
    }

    /// Says whether the same call may succeed later.
    #[must_use]
    pub fn retry(mut self, retry: bool) -> Self {
        self.retry = retry;
        self
    }

    /// Puts a subject where none was known below.
    #[must_use]
    pub fn about_node(mut self, node: &str) -> Self {
        self.message = format!("{} (node \"{node}\")", self.message);
        self
    }

    /// About something else.
    pub fn about(mut self, subject: impl Into<String>) -> Self {
        if self.subject.is_empty() {
            self.subject = subject.into();
        }
        self
    }
}

/// A text of any length as one that fits a record and a screen: at most 4,000 characters.
pub fn shorten(text: &str) -> String {
    const MOST: usize = 4000;
    match text.char_indices().nth(MOST) {
        Some((end, _)) => format!("{}...", &text[..end]),
        None => text.to_owned(),
    }
}

impl fmt::Display for Error {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        if !self.subject.is_empty() {
            write!(f, "{}: ", self.subject)?;
        }
        f.write_str(&self.message)?;
        if let Some(cause) = &self.cause {
            write!(f, ": {cause}")?;
        }
        if let Some(help) = &self.help {
            write!(f, "\n  = help: {help}")?;
        }
        Ok(())
    }
}

impl std::error::Error for Error {}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn reads_subject_first_and_help_last() {
        let error = Error::invalid("service \"web\"", "replicas is negative").help("use 0 or more");
        assert_eq!(error.to_string(), "service \"web\": replicas is negative\n  = help: use 0 or more");
    }
    #[test]
    fn what_is_no_file_is_bad_input_and_a_broken_disk_is_not() {
        use std::io::{Error as Io, ErrorKind};
        let kind = |kind: ErrorKind| Error::io("file .", "read it", &Io::from(kind));
        assert_eq!(kind(ErrorKind::IsADirectory).kind, Kind::Invalid);
        assert_eq!(kind(ErrorKind::NotADirectory).kind, Kind::Invalid);
        assert_eq!(kind(ErrorKind::NotFound).kind, Kind::NotFound);
        assert!(!kind(ErrorKind::IsADirectory).retry, "another try reads no folder");
        assert_eq!(kind(ErrorKind::Other).kind, Kind::Unavailable);
        assert!(kind(ErrorKind::Other).retry);
    }
}
