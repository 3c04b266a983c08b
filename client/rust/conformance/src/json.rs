//! Between JSON and what the SDK speaks.

use std::error::Error;

use headrace::prost::Message;
use serde_json::{Value, json};

use crate::reflective;

/// What came of a call.
pub(crate) struct Outcome {
    pub(crate) messages: Vec<Value>,
    pub(crate) trace_id: String,
    pub(crate) error: Option<headrace::Error>,
}

/// A request of the SDK's own types, for the method at `path`, by Protobuf's JSON.
pub(crate) fn request_of<T: Message + Default>(
    path: &str,
    json: &Value,
) -> Result<T, Box<dyn Error>> {
    Ok(reflective::message(reflective::method(path)?.input(), json)?.transcode_to()?)
}

pub(crate) fn error_json(error: &headrace::Error) -> Value {
    let violations: Vec<_> = error
        .violations()
        .iter()
        .map(|found| json!({ "field": found.field, "description": found.description }))
        .collect();
    json!({
        "code": code_name(&format!("{:?}", error.code())),
        "reason": error.reason_name(),
        "message": error.message(),
        "metadata": error.metadata(),
        "retry_after": error.retry_after().map(|delay| delay.as_secs_f64()),
        "violations": violations,
    })
}

/// `NotFound` as gRPC writes it: `NOT_FOUND`.
fn code_name(name: &str) -> String {
    let mut text = String::new();
    for (index, letter) in name.char_indices() {
        if index > 0 && letter.is_ascii_uppercase() {
            text.push('_');
        }
        text.push(letter.to_ascii_uppercase());
    }
    text
}
