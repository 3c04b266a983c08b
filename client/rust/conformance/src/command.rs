//! What the suite asks for.

use std::collections::HashMap;
use std::error::Error;
use std::time::Duration;

use headrace::v1::{ImageResult, StreamCompletionRequest, StreamImageRequest};
use headrace::{Client, Completion, Images, tonic};
use opentelemetry::Context;
use opentelemetry::trace::{FutureExt, SpanContext, TraceContextExt, TraceFlags, TraceState};
use serde::Deserialize;
use serde_json::{Value, json};
use sha2::{Digest, Sha256};
use tonic::metadata::{AsciiMetadataKey, AsciiMetadataValue};

use crate::json::{Outcome, error_json, request_of};
use crate::reflective;

const COMPLETION: &str = "/headrace.v1.CompletionService/StreamCompletion";
const IMAGE: &str = "/headrace.v1.ImageService/StreamImage";

type Result<T> = std::result::Result<T, Box<dyn Error>>;

#[derive(Deserialize)]
#[serde(tag = "do", rename_all = "lowercase", deny_unknown_fields)]
pub(crate) enum Command {
    Connect(Connect),
    Call(Call),
    Complete(Help),
    Draw(Help),
}

#[derive(Deserialize)]
pub(crate) struct Connect {
    target: String,
    token: Option<String>,
    ca: Option<String>,
    cert: Option<String>,
    key: Option<String>,
    timeout: Option<f64>,
}

#[derive(Deserialize)]
pub(crate) struct Call {
    method: String,
    #[serde(default)]
    request: Value,
    timeout: Option<f64>,
    cancel_after: Option<usize>,
    traceparent: Option<String>,
    #[serde(default)]
    headers: HashMap<String, String>,
}

#[derive(Deserialize)]
pub(crate) struct Help {
    request: Value,
    timeout: Option<f64>,
}

#[derive(Default)]
pub(crate) struct Driver {
    client: Option<Client>,
}

impl Driver {
    pub(crate) async fn run(&mut self, command: Command) -> Result<Value> {
        if let Command::Connect(connect) = command {
            self.client = None;
            return Ok(match build(connect)? {
                Ok(client) => {
                    self.client = Some(client);
                    json!({})
                }
                Err(error) => json!({ "error": error_json(&error) }),
            });
        }
        let client = self.client.as_ref().ok_or("nothing is connected")?;
        match command {
            Command::Connect(_) => unreachable!("answered above"),
            Command::Call(call) => run_call(client, call).await,
            Command::Complete(help) => {
                let message = request_of::<StreamCompletionRequest>(COMPLETION, &help.request)?;
                Ok(completion(client.complete(timed(message, help.timeout)).await))
            }
            Command::Draw(help) => {
                let message = request_of::<StreamImageRequest>(IMAGE, &help.request)?;
                Ok(images(client.draw(timed(message, help.timeout)).await))
            }
        }
    }
}

fn build(connect: Connect) -> Result<std::result::Result<Client, headrace::Error>> {
    let mut builder = Client::builder().ignore_environment().target(connect.target);
    if let Some(token) = connect.token {
        builder = builder.token(token);
    }
    if let Some(ca) = connect.ca {
        builder = builder.tls_ca(std::fs::read(ca)?);
    }
    if let Some((cert, key)) = connect.cert.zip(connect.key) {
        builder = builder.client_certificate(std::fs::read(cert)?, std::fs::read(key)?);
    }
    if let Some(timeout) = connect.timeout {
        builder = builder.timeout(Duration::from_secs_f64(timeout));
    }
    Ok(builder.build())
}

fn timed<T>(message: T, timeout: Option<f64>) -> tonic::Request<T> {
    let mut request = tonic::Request::new(message);
    if let Some(timeout) = timeout {
        request.set_timeout(Duration::from_secs_f64(timeout));
    }
    request
}

async fn run_call(client: &Client, call: Call) -> Result<Value> {
    let method = reflective::method(&call.method)?;
    let message = reflective::message(method.input(), &call.request)?;
    let mut request = timed(message, call.timeout);
    for (name, value) in &call.headers {
        let (name, value): (AsciiMetadataKey, AsciiMetadataValue) = (name.parse()?, value.parse()?);
        request.metadata_mut().insert(name, value);
    }
    let context = match &call.traceparent {
        Some(parent) => Context::new().with_remote_span_context(span(parent)?),
        None => Context::new(),
    };
    let most = call.cancel_after.unwrap_or(usize::MAX);
    let Outcome { messages, trace_id, error } =
        reflective::call(client, &method, request, most).with_context(context).await;
    Ok(json!({
        "messages": messages,
        "trace_id": trace_id,
        "error": error.as_ref().map(error_json),
    }))
}

fn span(parent: &str) -> Result<SpanContext> {
    let mut parts = parent.split('-').skip(1);
    let (Some(trace), Some(span), Some(flags)) = (parts.next(), parts.next(), parts.next()) else {
        return Err(format!("{parent} is no traceparent").into());
    };
    let flags = TraceFlags::new(u8::from_str_radix(flags, 16)?);
    let (trace, span) = (u128::from_str_radix(trace, 16)?, u64::from_str_radix(span, 16)?);
    Ok(SpanContext::new(trace.into(), span.into(), flags, true, TraceState::NONE))
}

fn completion(outcome: std::result::Result<Completion, headrace::Error>) -> Value {
    match outcome {
        Ok(whole) => json!({
            "text": whole.text(),
            "token_ids": whole.token_ids(),
            "finish_reason": whole.finish_reason().as_str_name(),
            "input_tokens": whole.usage().prompt_tokens,
            "output_tokens": whole.usage().output_tokens,
            "resumes": whole.resumes(),
            "trace_id": whole.trace_id,
            "error": null,
        }),
        Err(error) => json!({
            "text": "",
            "token_ids": [],
            "finish_reason": "",
            "input_tokens": 0,
            "output_tokens": 0,
            "resumes": 0,
            "trace_id": error.trace_id().unwrap_or_default(),
            "error": error_json(&error),
        }),
    }
}

fn images(outcome: std::result::Result<Images, headrace::Error>) -> Value {
    match outcome {
        Ok(whole) => {
            let images = whole.images.iter().map(|image| image_json(&image.data, &image.result));
            let images: Vec<_> = images.collect();
            json!({ "images": images, "trace_id": whole.trace_id, "error": null })
        }
        Err(error) => json!({
            "images": [],
            "trace_id": error.trace_id().unwrap_or_default(),
            "error": error_json(&error),
        }),
    }
}

/// The checksum is that of the file that came, whatever the server says of it.
fn image_json(data: &[u8], result: &ImageResult) -> Value {
    let digest = Sha256::digest(data);
    json!({
        "sha256": digest.iter().fold(String::new(), |text, byte| text + &format!("{byte:02x}")),
        "bytes": data.len(),
        "media_type": result.media_type,
    })
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_file_is_told_of_by_its_own_checksum() {
        let result = ImageResult { sha256: "00".repeat(32), ..Default::default() };
        let told = image_json(b"abc", &result);
        let expected = "ba7816bf8f01cfea414140de5dae2223b00361a396177a9cb410ff61f20015ad";
        assert_eq!((&told["sha256"], &told["bytes"]), (&json!(expected), &json!(3)));
    }
}
