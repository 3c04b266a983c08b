//! Ties each call to a trace id that the caller can read, with or without a tracer.

use std::hash::{BuildHasher, RandomState};

use http::HeaderMap;
use http::header::{HeaderName, HeaderValue};
use tonic::metadata::MetadataMap;
use tonic::{Response, Status};

/// Where the channel leaves the trace id, in what comes back of a call. It does not travel.
const TRACE_ID: &str = "headrace-trace-id";
const TRACEPARENT: HeaderName = HeaderName::from_static("traceparent");
#[cfg(feature = "opentelemetry")]
const TRACESTATE: HeaderName = HeaderName::from_static("tracestate");

/// What belongs to a call and so to a trace.
pub trait Traced {
    /// The trace of the call, 32 hexadecimal digits, as in the logs of the services. `None`: the
    /// call was not made by a [`Channel`](crate::Channel).
    fn trace_id(&self) -> Option<&str>;
}

impl<T> Traced for Response<T> {
    fn trace_id(&self) -> Option<&str> {
        noted(self.metadata())
    }
}

impl Traced for Status {
    fn trace_id(&self) -> Option<&str> {
        noted(self.metadata())
    }
}

fn noted(metadata: &MetadataMap) -> Option<&str> {
    metadata.get(TRACE_ID)?.to_str().ok()
}

/// The trace of one call.
#[derive(Clone, Debug)]
pub(crate) struct TraceId(HeaderValue);

impl TraceId {
    /// Puts a trace context into the headers of a call and gives its id: that which the caller put
    /// there, else that of OpenTelemetry's current span, else a new one.
    pub(crate) fn begin(headers: &mut HeaderMap) -> Self {
        if let Some(id) = headers.get(TRACEPARENT).and_then(id_of) {
            return Self(id);
        }
        #[cfg(feature = "opentelemetry")]
        if let Some(id) = current(headers) {
            return Self(id);
        }
        let (trace, span) = ((u128::from(random()) << 64) | u128::from(random()), random());
        // Flag 01: the services may record the trace; whether they do is their setting.
        put(headers, TRACEPARENT, &format!("00-{trace:032x}-{span:016x}-01"));
        Self(HeaderValue::from_str(&format!("{trace:032x}")).expect("digits"))
    }

    /// Leaves the id in what comes back.
    pub(crate) fn note(&self, headers: &mut HeaderMap) {
        headers.insert(TRACE_ID, self.0.clone());
    }

    /// Leaves the id in a failure that has no headers of its own.
    pub(crate) fn note_in(&self, mut status: Status) -> Status {
        if let Ok(id) = self.0.to_str().unwrap_or_default().parse() {
            status.metadata_mut().insert(TRACE_ID, id);
        }
        status
    }
}

/// A number that is another one each time, in each process.
pub(crate) fn random() -> u64 {
    RandomState::new().hash_one(())
}

/// The id in a `traceparent`.
fn id_of(parent: &HeaderValue) -> Option<HeaderValue> {
    let id = parent.to_str().ok()?.split('-').nth(1)?;
    HeaderValue::from_str(id).ok()
}

fn put(headers: &mut HeaderMap, name: HeaderName, value: &str) {
    if let Ok(value) = HeaderValue::from_str(value) {
        headers.insert(name, value);
    }
}

/// Goes on with OpenTelemetry's current span, if there is one.
#[cfg(feature = "opentelemetry")]
fn current(headers: &mut HeaderMap) -> Option<HeaderValue> {
    use opentelemetry::Context;
    use opentelemetry::trace::TraceContextExt;

    let span = Context::map_current(|context| context.span().span_context().clone());
    if !span.is_valid() {
        return None;
    }
    let (trace, flags) = (span.trace_id().to_string(), span.trace_flags().to_u8());
    put(headers, TRACEPARENT, &format!("00-{trace}-{}-{flags:02x}", span.span_id()));
    let state = span.trace_state().header();
    if !state.is_empty() {
        put(headers, TRACESTATE, &state);
    }
    HeaderValue::from_str(&trace).ok()
}
