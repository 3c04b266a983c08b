//! Any call of the contract by its name, through the SDK's own channel.

use std::error::Error;
use std::sync::LazyLock;

use headrace::prost::Message;
use headrace::prost::bytes::{Buf, BufMut};
use headrace::tonic::client::Grpc;
use headrace::tonic::codec::{Codec, DecodeBuf, Decoder, EncodeBuf, Encoder};
use headrace::tonic::{Request, Status};
use headrace::{Client, Traced};
use prost_reflect::{DescriptorPool, DynamicMessage, MessageDescriptor, MethodDescriptor};
use serde_json::Value;

use crate::json::Outcome;

static POOL: LazyLock<DescriptorPool> = LazyLock::new(|| {
    DescriptorPool::decode(headrace::FILE_DESCRIPTOR_SET).expect("the SDK's own descriptors")
});

/// A method, by its path.
pub(crate) fn method(path: &str) -> Result<MethodDescriptor, Box<dyn Error>> {
    let (service, method) =
        path.trim_start_matches('/').rsplit_once('/').ok_or("a path has two parts")?;
    let service = POOL.get_service_by_name(service).ok_or_else(|| format!("no {service}"))?;
    let found = service.methods().find(|found| found.name() == method);
    Ok(found.ok_or_else(|| format!("no {path}"))?)
}

pub(crate) fn message(
    kind: MessageDescriptor,
    json: &Value,
) -> Result<DynamicMessage, Box<dyn Error>> {
    if json.is_null() {
        return Ok(DynamicMessage::new(kind));
    }
    Ok(DynamicMessage::deserialize(kind, json)?)
}

/// Makes a call, and cancels it once `most` messages have come.
pub(crate) async fn call(
    client: &Client,
    method: &MethodDescriptor,
    request: Request<DynamicMessage>,
    most: usize,
) -> Outcome {
    let mut outcome = Outcome { messages: Vec::new(), trace_id: String::new(), error: None };
    if let Err(status) = follow(client, method, request, most, &mut outcome).await {
        let error = headrace::Error::from(status);
        if let Some(trace_id) = error.trace_id() {
            outcome.trace_id = trace_id.into();
        }
        outcome.error = Some(error);
    }
    outcome
}

async fn follow(
    client: &Client,
    method: &MethodDescriptor,
    request: Request<DynamicMessage>,
    most: usize,
    outcome: &mut Outcome,
) -> Result<(), Status> {
    let path = format!("/{}/{}", method.parent_service().full_name(), method.name());
    let path = path.parse().expect("the path of a method");
    let codec = Dynamic(method.output());
    let mut grpc =
        Grpc::new(client.channel()).max_decoding_message_size(headrace::MAX_MESSAGE_BYTES);
    if !method.is_server_streaming() {
        let response = grpc.unary(request, path, codec).await?;
        outcome.trace_id = response.trace_id().unwrap_or_default().into();
        outcome.messages.push(json(response.get_ref()));
        return Ok(());
    }
    let response = grpc.server_streaming(request, path, codec).await?;
    outcome.trace_id = response.trace_id().unwrap_or_default().into();
    let mut stream = response.into_inner();
    while outcome.messages.len() < most {
        match stream.message().await? {
            Some(message) => outcome.messages.push(json(&message)),
            None => break,
        }
    }
    Ok(()) // Dropping the stream cancels what still runs.
}

fn json(message: &DynamicMessage) -> Value {
    serde_json::to_value(message).expect("what came in can go out")
}

/// Messages of which the descriptor alone is known.
struct Dynamic(MessageDescriptor);

impl Codec for Dynamic {
    type Encode = DynamicMessage;
    type Decode = DynamicMessage;
    type Encoder = Self;
    type Decoder = Self;

    fn encoder(&mut self) -> Self {
        Self(self.0.clone())
    }

    fn decoder(&mut self) -> Self {
        Self(self.0.clone())
    }
}

impl Encoder for Dynamic {
    type Item = DynamicMessage;
    type Error = Status;

    fn encode(
        &mut self,
        message: DynamicMessage,
        buffer: &mut EncodeBuf<'_>,
    ) -> Result<(), Status> {
        buffer.put(&*message.encode_to_vec());
        Ok(())
    }
}

impl Decoder for Dynamic {
    type Item = DynamicMessage;
    type Error = Status;

    fn decode(&mut self, buffer: &mut DecodeBuf<'_>) -> Result<Option<DynamicMessage>, Status> {
        let bytes = buffer.copy_to_bytes(buffer.remaining());
        DynamicMessage::decode(self.0.clone(), bytes)
            .map(Some)
            .map_err(|error| Status::internal(error.to_string()))
    }
}
