//! A server that does to a call what no healthy one does.

use std::future::{Future, poll_fn};
use std::sync::Arc;
use std::sync::atomic::{AtomicUsize, Ordering};

use h2::server::SendResponse;
use h2::{Reason, SendStream};
use headrace::prost::Message;
use headrace::prost::bytes::{Bytes, BytesMut};
use http::{HeaderMap, HeaderValue, Response, StatusCode};
use tokio::io::{AsyncRead, AsyncWrite};
use tokio::net::TcpListener;
use tokio::sync::Notify;
use tokio::task::JoinSet;

/// One call as it came in, to be answered.
pub(crate) struct Call {
    /// How many came before it.
    pub(crate) number: usize,
    pub(crate) headers: HeaderMap,
    respond: SendResponse<Bytes>,
    drop_connection: Arc<Notify>,
}

impl Call {
    /// Ends the call at once, with what its only headers say.
    pub(crate) fn end(mut self, headers: &[(&'static str, &str)]) {
        let mut response = Response::new(());
        add(response.headers_mut(), headers);
        self.respond.send_response(response, true).unwrap();
    }

    /// Ends the call as HTTP does.
    pub(crate) fn end_as_http(mut self, status: StatusCode) {
        let response = Response::builder().status(status).body(()).unwrap();
        self.respond.send_response(response, true).unwrap();
    }

    /// Begins an answer of messages.
    pub(crate) fn begin(&mut self) -> Answer {
        let mut response = Response::new(());
        add(response.headers_mut(), &[("content-type", "application/grpc")]);
        Answer(self.respond.send_response(response, false).unwrap())
    }

    /// Answers with one message.
    pub(crate) fn answer(mut self, message: &impl Message) {
        let mut answer = self.begin();
        answer.send(message);
        answer.end(&[("grpc-status", "0")]);
    }

    /// Waits until the client gives the call up, and says why it did.
    pub(crate) async fn given_up(&mut self) -> Reason {
        poll_fn(|cx| self.respond.poll_reset(cx)).await.unwrap()
    }

    /// Breaks the connection off.
    pub(crate) fn drop_connection(self) {
        self.drop_connection.notify_one();
    }
}

pub(crate) struct Answer(SendStream<Bytes>);

impl Answer {
    pub(crate) fn send(&mut self, message: &impl Message) {
        let mut data = BytesMut::from(&[0][..]);
        data.extend_from_slice(&u32::try_from(message.encoded_len()).unwrap().to_be_bytes());
        message.encode(&mut data).unwrap();
        self.0.send_data(data.freeze(), false).unwrap();
    }

    pub(crate) fn end(mut self, trailers: &[(&'static str, &str)]) {
        let mut headers = HeaderMap::new();
        add(&mut headers, trailers);
        self.0.send_trailers(headers).unwrap();
    }

    /// Ends the answer without a status.
    pub(crate) fn cut(mut self) {
        self.0.send_data(Bytes::new(), true).unwrap();
    }

    pub(crate) fn reset(mut self, reason: Reason) {
        self.0.send_reset(reason);
    }

    /// Waits until the client gives the call up, and says why it did.
    pub(crate) async fn given_up(&mut self) -> Reason {
        poll_fn(|cx| self.0.poll_reset(cx)).await.unwrap()
    }
}

fn add(headers: &mut HeaderMap, more: &[(&'static str, &str)]) {
    for (name, value) in more {
        headers.insert(*name, HeaderValue::from_str(value).unwrap());
    }
}

/// A running server. It ends when it is dropped.
pub(crate) struct Server {
    pub(crate) target: String,
    calls: Arc<AtomicUsize>,
    _task: JoinSet<()>,
}

impl Server {
    /// Starts one on loopback that has each call handled by `handle`.
    pub(crate) async fn start<H, F>(handle: H) -> Self
    where
        H: Fn(Call) -> F + Clone + Send + 'static,
        F: Future<Output = ()> + Send + 'static,
    {
        let listener = TcpListener::bind("127.0.0.1:0").await.unwrap();
        let target = listener.local_addr().unwrap().to_string();
        let (calls, mut task) = (Arc::default(), JoinSet::new());
        task.spawn(accept(listener, handle, Arc::clone(&calls)));
        Self { target, calls, _task: task }
    }

    /// How many calls have come.
    pub(crate) fn calls(&self) -> usize {
        self.calls.load(Ordering::SeqCst)
    }
}

async fn accept<H, F>(listener: TcpListener, handle: H, calls: Arc<AtomicUsize>)
where
    H: Fn(Call) -> F + Clone + Send + 'static,
    F: Future<Output = ()> + Send + 'static,
{
    let mut connections = JoinSet::new();
    while let Ok((socket, _)) = listener.accept().await {
        connections.spawn(serve(socket, handle.clone(), Arc::clone(&calls)));
    }
}

/// Serves one connection.
pub(crate) async fn serve<I, H, F>(socket: I, handle: H, calls: Arc<AtomicUsize>)
where
    I: AsyncRead + AsyncWrite + Unpin,
    H: Fn(Call) -> F,
    F: Future<Output = ()> + Send + 'static,
{
    let Ok(mut connection) = h2::server::handshake(socket).await else { return };
    let (drop_connection, mut running) = (Arc::new(Notify::new()), JoinSet::new());
    loop {
        let accepted = tokio::select! {
            accepted = connection.accept() => accepted,
            () = drop_connection.notified() => return,
        };
        let Some(Ok((request, respond))) = accepted else { return };
        running.spawn(handle(Call {
            number: calls.fetch_add(1, Ordering::SeqCst),
            headers: request.headers().clone(),
            respond,
            drop_connection: Arc::clone(&drop_connection),
        }));
    }
}
