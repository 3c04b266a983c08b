use std::collections::BTreeMap;
use std::fmt;
use std::sync::Arc;
use std::time::Duration;

use prost::Message;
use tonic::{Code, Status};

use crate::rpc::{BadRequest, ErrorInfo, RetryInfo};
use crate::trace::Traced;
use crate::v1::ErrorReason;

const DOMAIN: &str = "headrace.dev";
const REASON_PREFIX: &str = "ERROR_REASON_";
/// How other gRPC libraries tell of a stream that was broken off.
const BROKEN_OFF: &str = "RST_STREAM";

/// Why a call failed.
///
/// Every [`Status`] of the stubs becomes one, by `?` or `Error::from`. Match it by its
/// [reason](Error::reason), or by its [code](Error::code) where there is none:
///
/// ```
/// use headrace::{Error, v1::ErrorReason};
///
/// fn advice(error: &Error) -> String {
///     match error.reason() {
///         Some(ErrorReason::ModelNotFound) => format!("try {}", error.metadata()["nearest"]),
///         Some(ErrorReason::QueueFull) => format!("again in {:?}", error.retry_after()),
///         _ => error.message().into(),
///     }
/// }
/// ```
#[derive(Clone)]
pub struct Error(Box<Inner>);

#[derive(Clone)]
struct Inner {
    code: Code,
    reason: String,
    message: String,
    metadata: BTreeMap<String, String>,
    retry_after: Option<Duration>,
    violations: Vec<FieldViolation>,
    trace_id: Option<String>,
    status: Option<Arc<Status>>,
}

/// A field of the request that breaks a rule.
#[derive(Clone, Debug, PartialEq, Eq)]
#[non_exhaustive]
pub struct FieldViolation {
    /// Path in the request, such as `sampling.temperature` or `stop.strings[2]`.
    pub field: String,
    /// The rule, in words.
    pub description: String,
}

impl Error {
    pub(crate) fn new(code: Code, message: impl Into<String>) -> Self {
        Self(Box::new(Inner {
            code,
            reason: String::new(),
            message: message.into(),
            metadata: BTreeMap::new(),
            retry_after: None,
            violations: Vec::new(),
            trace_id: None,
            status: None,
        }))
    }

    /// What the caller asked for cannot be; nothing was sent.
    pub(crate) fn invalid(message: impl Into<String>) -> Self {
        let mut error = Self::new(Code::InvalidArgument, message);
        error.0.reason = "INVALID_REQUEST".into();
        error
    }

    /// A stream lacks its end.
    pub(crate) fn incomplete() -> Self {
        let message = "the stream ended without being completed: what came of it is not whole";
        Self::broken(message)
    }

    /// A stream breaks its contract.
    pub(crate) fn broken(message: impl Into<String>) -> Self {
        Self::new(Code::Internal, message)
    }

    pub(crate) fn with_trace_id(mut self, trace_id: &str) -> Self {
        self.0.trace_id = Some(trace_id.into());
        self
    }

    /// The canonical status code.
    #[must_use]
    pub fn code(&self) -> Code {
        self.0.code
    }

    /// Why, as the contract has it. `None`: the server gave no reason, as when it cannot be reached,
    /// or one that this version does not know; then go by the [code](Self::code).
    #[must_use]
    pub fn reason(&self) -> Option<ErrorReason> {
        ErrorReason::from_str_name(&format!("{REASON_PREFIX}{}", self.0.reason))
            .filter(|reason| *reason != ErrorReason::Unspecified)
    }

    /// The reason's name, such as `QUEUE_FULL`, also one that this version does not know. Empty if
    /// the server gave none.
    #[must_use]
    pub fn reason_name(&self) -> &str {
        &self.0.reason
    }

    /// What happened and what to do about it, for people.
    #[must_use]
    pub fn message(&self) -> &str {
        &self.0.message
    }

    /// The keys that [`ErrorReason`] documents.
    #[must_use]
    pub fn metadata(&self) -> &BTreeMap<String, String> {
        &self.0.metadata
    }

    /// After how long a new try makes sense. `None`: the server did not say.
    #[must_use]
    pub fn retry_after(&self) -> Option<Duration> {
        self.0.retry_after
    }

    /// The fields at fault.
    #[must_use]
    pub fn violations(&self) -> &[FieldViolation] {
        &self.0.violations
    }

    /// The trace of the call, 32 hexadecimal digits, as in the logs of the services. `None`: there
    /// was no call.
    #[must_use]
    pub fn trace_id(&self) -> Option<&str> {
        self.0.trace_id.as_deref()
    }
}

impl From<Status> for Error {
    fn from(status: Status) -> Self {
        let mut error = Self::new(status.code(), status.message());
        let inner = &mut *error.0;
        // What cannot be decoded says nothing; the code and the message are there anyway.
        let details = crate::rpc::Status::decode(status.details()).unwrap_or_default().details;
        for detail in details {
            match detail.type_url.rsplit('/').next() {
                Some("google.rpc.ErrorInfo") => {
                    let info = ErrorInfo::decode(&*detail.value).unwrap_or_default();
                    if info.domain == DOMAIN {
                        inner.reason = info.reason;
                        inner.metadata = info.metadata;
                    }
                }
                Some("google.rpc.RetryInfo") => {
                    let info = RetryInfo::decode(&*detail.value).unwrap_or_default();
                    let delay = info.retry_delay.unwrap_or_default();
                    inner.retry_after = Some(delay.try_into().unwrap_or_default());
                }
                Some("google.rpc.BadRequest") => {
                    let bad = BadRequest::decode(&*detail.value).unwrap_or_default();
                    inner.violations = bad.field_violations.into_iter().map(Into::into).collect();
                }
                _ => {}
            }
        }
        if inner.reason.is_empty()
            && inner.code == Code::Internal
            && inner.message.contains(BROKEN_OFF)
        {
            // Headrace's own INTERNAL has a reason.
            inner.code = Code::Unavailable;
        }
        inner.trace_id = status.trace_id().map(Into::into);
        inner.status = Some(Arc::new(status));
        error
    }
}

impl From<crate::rpc::bad_request::FieldViolation> for FieldViolation {
    fn from(violation: crate::rpc::bad_request::FieldViolation) -> Self {
        Self { field: violation.field, description: violation.description }
    }
}

impl fmt::Display for Error {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let Inner { code, reason, message, trace_id, .. } = &*self.0;
        write!(f, "{message} (")?;
        if reason.is_empty() {
            write!(f, "{code:?}")?;
        } else {
            f.write_str(reason)?;
        }
        if let Some(trace_id) = trace_id {
            write!(f, ", trace {trace_id}")?;
        }
        f.write_str(")")
    }
}

impl fmt::Debug for Error {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let inner = &*self.0;
        f.debug_struct("Error")
            .field("code", &inner.code)
            .field("reason", &inner.reason)
            .field("message", &inner.message)
            .field("metadata", &inner.metadata)
            .field("retry_after", &inner.retry_after)
            .field("violations", &inner.violations)
            .field("trace_id", &inner.trace_id)
            .finish_non_exhaustive()
    }
}

impl std::error::Error for Error {
    fn source(&self) -> Option<&(dyn std::error::Error + 'static)> {
        // The status itself says nothing that is not said here.
        self.0.status.as_deref().and_then(std::error::Error::source)
    }
}

#[cfg(test)]
mod tests {
    use prost::bytes::Bytes;
    use prost_types::Any;

    use super::*;
    use crate::rpc;

    fn any(name: &str, detail: &impl Message) -> Any {
        let type_url = format!("type.googleapis.com/google.rpc.{name}");
        Any { type_url, value: detail.encode_to_vec() }
    }

    fn info(domain: &str, reason: &str) -> Any {
        let metadata = [("queue".to_owned(), "model".to_owned())].into();
        any("ErrorInfo", &ErrorInfo { reason: reason.into(), domain: domain.into(), metadata })
    }

    fn error(code: Code, message: &str, details: Vec<Any>) -> Error {
        let status = rpc::Status { code: code.into(), message: message.into(), details };
        let details = Bytes::from(status.encode_to_vec());
        Status::with_details(code, message, details).into()
    }

    #[test]
    fn details_are_read() {
        let delay = prost_types::Duration { seconds: 1, nanos: 500_000_000 };
        let violation = rpc::bad_request::FieldViolation {
            field: "sampling.temperature".into(),
            description: "too hot".into(),
            ..Default::default()
        };
        let details = vec![
            any("Help", &rpc::Help::default()),
            info(DOMAIN, "QUEUE_FULL"),
            any("RetryInfo", &RetryInfo { retry_delay: Some(delay) }),
            any("BadRequest", &BadRequest { field_violations: vec![violation] }),
        ];
        let error = error(Code::ResourceExhausted, "full", details);
        assert_eq!(error.code(), Code::ResourceExhausted);
        assert_eq!(error.reason(), Some(ErrorReason::QueueFull));
        assert_eq!((error.reason_name(), error.message()), ("QUEUE_FULL", "full"));
        assert_eq!(error.metadata()["queue"], "model");
        assert_eq!(error.retry_after(), Some(Duration::from_millis(1500)));
        let [violation] = error.violations() else { panic!("{error:?}") };
        assert_eq!(
            (&*violation.field, &*violation.description),
            ("sampling.temperature", "too hot")
        );
        assert_eq!(error.to_string(), "full (QUEUE_FULL)");
    }

    #[test]
    fn a_reason_is_headraces_or_none() {
        let other = error(Code::Unavailable, "x", vec![info("example.com", "QUEUE_FULL")]);
        assert_eq!((other.reason(), other.reason_name()), (None, ""));
        assert_eq!(other.to_string(), "x (Unavailable)");
        let newer = error(Code::Unavailable, "x", vec![info(DOMAIN, "NEWER")]);
        assert_eq!((newer.reason(), newer.reason_name()), (None, "NEWER"));
        let unspecified = error(Code::Unavailable, "x", vec![info(DOMAIN, "UNSPECIFIED")]);
        assert_eq!(unspecified.reason(), None);
    }

    #[test]
    fn what_cannot_be_read_says_nothing() {
        let details = Bytes::from_static(b"\xff\xff");
        let error = Error::from(Status::with_details(Code::NotFound, "x", details));
        assert_eq!((error.code(), error.message()), (Code::NotFound, "x"));
        assert_eq!((error.reason_name(), error.retry_after()), ("", None));
    }

    #[test]
    fn internal_with_a_reason_stays_what_it_is() {
        let broken = "Received RST_STREAM with error code 2";
        assert_eq!(error(Code::Internal, broken, vec![]).code(), Code::Unavailable);
        let bug = error(Code::Internal, broken, vec![info(DOMAIN, "INTERNAL")]);
        assert_eq!(bug.code(), Code::Internal);
        assert_eq!(error(Code::Internal, "x", vec![]).code(), Code::Internal);
    }
}
