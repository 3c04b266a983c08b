//! The service that the stubs call.

use std::future::{Future, poll_fn};
use std::pin::Pin;
use std::sync::Arc;
use std::task::{Context, Poll};
use std::time::Duration;

use http::header::{AUTHORIZATION, HeaderMap, HeaderName, HeaderValue};
use http::request::Parts;
use http::{Request, Response, StatusCode};
use http_body_util::{BodyExt, Full};
use prost::bytes::Bytes;
use tokio::time::{Instant, sleep, timeout_at};
use tonic::Status;
use tonic::body::Body;
use tower_service::Service;

use crate::body::{Answer, Call};
use crate::methods::{self, Method};
use crate::trace::{TraceId, random};
use crate::{deadline, retry};

const MODEL: HeaderName = HeaderName::from_static("headrace-model");
const PREVIOUS_ATTEMPTS: HeaderName = HeaderName::from_static("grpc-previous-rpc-attempts");

/// A connection to a server, as the generated stubs take it.
///
/// Every call has a deadline if the client has a default, the token, a trace context and the header
/// by which proxies route it; what of these a call has itself stays. Unary calls are made again while
/// the server is unavailable, but for those that change its store. It is cheap to clone, and all
/// clones share one connection, which is made at the first call and again whenever it was lost.
#[derive(Clone, Debug)]
pub struct Channel {
    pub(crate) transport: tonic::transport::Channel,
    pub(crate) target: Arc<str>,
    pub(crate) authorization: Option<HeaderValue>,
    pub(crate) timeout: Option<Duration>,
}

impl Service<Request<Body>> for Channel {
    type Response = Response<Body>;
    type Error = Status;
    type Future = Pin<Box<dyn Future<Output = Result<Self::Response, Status>> + Send>>;

    fn poll_ready(&mut self, _: &mut Context<'_>) -> Poll<Result<(), Status>> {
        Poll::Ready(Ok(())) // Each attempt waits for the connection itself.
    }

    fn call(&mut self, mut request: Request<Body>) -> Self::Future {
        // Here, and not in the future, the caller's span is the current one for certain.
        let trace = TraceId::begin(request.headers_mut());
        let channel = self.clone();
        Box::pin(async move { channel.run(request, trace).await })
    }
}

impl Channel {
    async fn run(self, request: Request<Body>, trace: TraceId) -> Result<Response<Body>, Status> {
        let (mut parts, body) = request.into_parts();
        let timeout = deadline::timeout_of(&parts.headers).or(self.timeout);
        let call = Call { target: self.target.clone(), trace, deadline: deadline::after(timeout) };
        if let Some(authorization) = &self.authorization {
            parts.headers.entry(AUTHORIZATION).or_insert_with(|| authorization.clone());
        }
        let Some(method) = methods::find(parts.uri.path()) else {
            // Not of this contract: its requests may be a stream, and making it again unwise.
            let response = self.attempt(&call, parts, body).await?;
            return Ok(Self::answer(response, call));
        };
        // All requests of the contract are one message.
        let message = match body.collect().await {
            Ok(body) => body.to_bytes(),
            Err(status) => return Err(call.trace.note_in(status)),
        };
        if let Some(model) = method.model_in(&message) {
            parts.headers.entry(MODEL).or_insert(model);
        }
        let response = self.attempts(method, &call, parts, message).await?;
        Ok(Self::answer(response, call))
    }

    /// Makes a call of the contract, again while the server is unavailable where it may be.
    async fn attempts(
        &self,
        method: &Method,
        call: &Call,
        parts: Parts,
        message: Bytes,
    ) -> Result<Response<Body>, Status> {
        let mut number = 0;
        loop {
            let mut parts = parts.clone();
            if number > 0 {
                parts.headers.insert(PREVIOUS_ATTEMPTS, number.into());
            }
            let body = Body::new(Full::new(message.clone()));
            let outcome = self.attempt(call, parts, body).await;
            if !method.again {
                return outcome;
            }
            let headers = match &outcome {
                Ok(answer) if retry::is_unavailable(answer.status(), answer.headers()) => {
                    Some(answer.headers())
                }
                Err(status) if status.code() == tonic::Code::Unavailable => None,
                _ => return outcome,
            };
            let Some(wait) = retry::wait(number, headers, random()) else { return outcome };
            if call.deadline.is_some_and(|at| at.saturating_duration_since(Instant::now()) <= wait)
            {
                return outcome;
            }
            sleep(wait).await;
            number += 1;
        }
    }

    async fn attempt(
        &self,
        call: &Call,
        mut parts: Parts,
        body: Body,
    ) -> Result<Response<Body>, Status> {
        deadline::tell(&mut parts.headers, call.deadline);
        let mut transport = self.transport.clone();
        let sent = async move {
            poll_fn(|cx| transport.poll_ready(cx)).await?;
            transport.call(Request::from_parts(parts, body)).await
        };
        let outcome = match call.deadline {
            Some(at) => timeout_at(at, sent).await.map_err(|_| call.late())?,
            None => sent.await,
        };
        outcome.map_err(|error| call.failed(&error))
    }

    fn answer(mut response: Response<Body>, call: Call) -> Response<Body> {
        call.trace.note(response.headers_mut());
        let open = expects_status(response.status(), response.headers());
        response.map(|body| Body::new(Answer::new(body, call, open)))
    }
}

/// Whether the status of a call comes after its body.
fn expects_status(status: StatusCode, headers: &HeaderMap) -> bool {
    status == StatusCode::OK && !headers.contains_key("grpc-status")
}
