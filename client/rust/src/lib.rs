// `tests/readme.rs` has what the README shows, so that it need not be shown how it compiles.
#![cfg_attr(not(doctest), doc = include_str!("../README.md"))]

mod body;
mod builder;
mod channel;
mod client;
mod completion;
mod deadline;
mod error;
mod events;
mod image;
mod methods;
mod requests;
mod retry;
mod target;
mod trace;

pub use builder::Builder;
pub use channel::Channel;
pub use client::Client;
pub use completion::{Choice, Completion, CompletionStream};
pub use error::{Error, FieldViolation};
pub use image::{Image, ImageStream, Images};
pub use trace::Traced;
pub use {prost, prost_types, tonic};

/// The contract: messages and stubs, generated from `protos/headrace/v1`.
#[allow(missing_docs, unreachable_pub, clippy::all, clippy::pedantic, rustdoc::all)]
pub mod v1 {
    tonic::include_proto!("headrace.v1");
}

/// gRPC's health checking, which every service answers: "" for the server as a whole, and
/// "model/NAME" for a model.
#[allow(missing_docs, unreachable_pub, clippy::all, clippy::pedantic, rustdoc::all)]
pub mod health {
    tonic::include_proto!("grpc.health.v1");
}

/// What errors carry.
#[allow(dead_code, missing_docs, unreachable_pub, clippy::all, clippy::pedantic, rustdoc::all)]
mod rpc {
    tonic::include_proto!("google.rpc");
}

/// The descriptors of all these, an encoded `google.protobuf.FileDescriptorSet`: for reflection, and
/// for JSON.
pub const FILE_DESCRIPTOR_SET: &[u8] = include_bytes!(concat!(env!("OUT_DIR"), "/headrace.binpb"));

/// The largest message that the client's stubs take, in bytes.
pub const MAX_MESSAGE_BYTES: usize = 32 << 20;
