//! Why a request is refused, in the words of the OCI distribution specification.

use crate::model::{Error, Kind};

/// The specification's codes, and Docker's beside them.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Code {
    /// There is no such blob in this repository.
    BlobUnknown,
    /// What is sent does not follow what came before.
    BlobUploadInvalid,
    /// There is no such upload.
    BlobUploadUnknown,
    /// No digest, or not that of what came.
    DigestInvalid,
    /// A manifest names what is not in its repository.
    ManifestBlobUnknown,
    /// No manifest.
    ManifestInvalid,
    /// There is no such manifest in this repository.
    ManifestUnknown,
    /// No name of a repository, or of a tag.
    NameInvalid,
    /// There is no such repository.
    NameUnknown,
    /// More, or less, than was said.
    SizeInvalid,
    /// Who asks has to say who it is.
    Unauthorized,
    /// Who asks may not.
    Denied,
    /// It is not done here.
    Unsupported,
    /// Too much at once.
    TooManyRequests,
    /// Not the client's fault.
    Unknown,
}

impl Code {
    /// As in answers.
    pub fn as_str(self) -> &'static str {
        match self {
            Code::BlobUnknown => "BLOB_UNKNOWN",
            Code::BlobUploadInvalid => "BLOB_UPLOAD_INVALID",
            Code::BlobUploadUnknown => "BLOB_UPLOAD_UNKNOWN",
            Code::DigestInvalid => "DIGEST_INVALID",
            Code::ManifestBlobUnknown => "MANIFEST_BLOB_UNKNOWN",
            Code::ManifestInvalid => "MANIFEST_INVALID",
            Code::ManifestUnknown => "MANIFEST_UNKNOWN",
            Code::NameInvalid => "NAME_INVALID",
            Code::NameUnknown => "NAME_UNKNOWN",
            Code::SizeInvalid => "SIZE_INVALID",
            Code::Unauthorized => "UNAUTHORIZED",
            Code::Denied => "DENIED",
            Code::Unsupported => "UNSUPPORTED",
            Code::TooManyRequests => "TOOMANYREQUESTS",
            Code::Unknown => "UNKNOWN",
        }
    }

    /// The status that goes with it, where nothing else is said.
    pub fn status(self) -> u16 {
        match self {
            Code::BlobUnknown
            | Code::BlobUploadUnknown
            | Code::ManifestUnknown
            | Code::NameUnknown
            | Code::ManifestBlobUnknown => 404,
            Code::BlobUploadInvalid
            | Code::DigestInvalid
            | Code::ManifestInvalid
            | Code::NameInvalid
            | Code::SizeInvalid => 400,
            Code::Unauthorized => 401,
            Code::Denied => 403,
            Code::Unsupported => 405,
            Code::TooManyRequests => 429,
            Code::Unknown => 500,
        }
    }
}

/// A request that is refused.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Refused {
    /// The code.
    pub code: Code,
    /// Why, in words.
    pub why: String,
    /// What is concerned, one entry each: a digest, a name.
    pub about: Vec<String>,
    /// The status, where it is another than the code's.
    status: Option<u16>,
}

impl Refused {
    /// For a reason.
    pub fn new(code: Code, why: impl Into<String>) -> Self {
        Refused { code, why: why.into(), about: Vec::new(), status: None }
    }

    /// Says what is concerned.
    #[must_use]
    pub fn about(mut self, what: impl Into<String>) -> Self {
        self.about.push(what.into());
        self
    }

    /// Says another status.
    #[must_use]
    pub fn status_of(mut self, status: u16) -> Self {
        self.status = Some(status);
        self
    }

    /// The status of the answer.
    pub fn status(&self) -> u16 {
        self.status.unwrap_or_else(|| self.code.status())
    }

    /// A file or folder of ours that cannot be used.
    pub fn io(what: &str, error: &std::io::Error) -> Self {
        let full = error.kind() == std::io::ErrorKind::StorageFull;
        tracing::error!(%error, "the registry cannot {what}");
        let why = if full { "the registry's disk is full".to_owned() } else { format!("the registry cannot {what}") };
        Refused::new(Code::Unknown, why).status_of(if full { 507 } else { 500 })
    }
}

impl Refused {
    /// The same, for those who do not speak of registries by HTTP.
    pub fn into_error(self) -> Error {
        let kind = match self.status() {
            404 => Kind::NotFound,
            400 | 405 | 413 | 416 => Kind::Invalid,
            401 => Kind::Unauthenticated,
            403 => Kind::Forbidden,
            409 => Kind::Conflict,
            429 | 507 => Kind::Exhausted,
            _ => Kind::Unavailable,
        };
        let about = self.about.first().cloned().unwrap_or_else(|| "registry".into());
        Error::new(kind, about, self.why)
    }
}
