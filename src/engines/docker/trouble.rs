//! What a Docker Engine answered, as an error for the user.

use crate::model::{Error, Kind};

/// About `subject`, while trying to `act`.
pub fn error(subject: impl Into<String>, act: &str, error: &bollard::errors::Error) -> Error {
    use bollard::errors::Error as Docker;
    let message = format!("cannot {act}");
    match error {
        Docker::DockerResponseServerError { status_code, message: said } => {
            let kind = match status_code {
                400 => Kind::Invalid,
                401 | 403 => Kind::Forbidden,
                404 => Kind::NotFound,
                409 => Kind::Conflict,
                503 => Kind::Unavailable,
                _ => Kind::Internal,
            };
            Error::new(kind, subject, message).cause(said.trim()).retry(kind == Kind::Unavailable)
        }
        Docker::DockerStreamError { error: said } => Error::new(Kind::Internal, subject, message).cause(said.trim()),
        Docker::RequestTimeoutError => {
            Error::new(Kind::Timeout, subject, message).cause("the Docker Engine does not answer").retry(true)
        }
        Docker::IOError { .. } | Docker::HyperResponseError { .. } | Docker::HyperLegacyError { .. } => {
            Error::new(Kind::Unavailable, subject, message).cause(deepest(error)).retry(true)
        }
        other => Error::new(Kind::Internal, subject, message).cause(other),
    }
}

/// Whether the answer was this HTTP status.
pub fn is_status(error: &bollard::errors::Error, status: u16) -> bool {
    matches!(error, bollard::errors::Error::DockerResponseServerError { status_code, .. } if *status_code == status)
}

/// What a Docker Engine said to a refused request.
pub fn said(error: &bollard::errors::Error) -> String {
    match error {
        bollard::errors::Error::DockerResponseServerError { message, .. } => message.trim().to_owned(),
        bollard::errors::Error::DockerStreamError { error } => error.trim().to_owned(),
        other => deepest(other),
    }
}

// A client's error wraps another, and only the innermost says what happened.
fn deepest(error: &dyn std::error::Error) -> String {
    let mut error = error;
    while let Some(source) = error.source() {
        error = source;
    }
    error.to_string()
}
