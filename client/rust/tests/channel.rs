//! Calls over the client's channel, to a server that misbehaves as told.

mod server;

use std::sync::Arc;
use std::time::{Duration, Instant};

use h2::Reason;
use headrace::tonic::{Code, Request};
use headrace::v1::{
    ChoiceResult, CollectGarbageRequest, CompletionCompleted, CompletionDelta, CompletionStarted,
    CopyModelRequest, DeleteModelRequest, FinishReason, GetModelRequest, ListModelsRequest,
    ListModelsResponse, StreamCompletionRequest, StreamCompletionResponse,
    stream_completion_response::Event,
};
use headrace::{Client, Error, Traced};
use http::StatusCode;
use server::{Answer, Call, Server};
use tokio::sync::{Notify, mpsc};
use tokio::time::{sleep, timeout};

/// For what is done at once on an idle machine.
const PATIENCE: Duration = Duration::from_secs(30);

fn client(server: &Server) -> Client {
    at(&server.target)
}

fn at(target: &str) -> Client {
    Client::builder().ignore_environment().target(target).timeout(PATIENCE).build().unwrap()
}

fn request() -> StreamCompletionRequest {
    StreamCompletionRequest::from_prompt("m", "x")
}

fn event(event: Event) -> StreamCompletionResponse {
    StreamCompletionResponse { event: Some(event) }
}

/// The start of a completion and its first piece.
fn begin(answer: &mut Answer) {
    answer.send(&event(Event::Started(CompletionStarted::default())));
    let delta = CompletionDelta { text: "a".into(), token_ids: vec![1], ..Default::default() };
    answer.send(&event(Event::Delta(delta)));
}

fn end(mut answer: Answer) {
    let finish_reason = FinishReason::EndOfText.into();
    let choices = vec![ChoiceResult { finish_reason, ..Default::default() }];
    answer.send(&event(Event::Completed(CompletionCompleted { choices, ..Default::default() })));
    answer.end(&[("grpc-status", "0")]);
}

async fn list(client: &Client) -> Result<ListModelsResponse, Error> {
    Ok(client.models().list_models(ListModelsRequest::default()).await?.into_inner())
}

/// What a completion fails with whose answer `ruin` gets after its first piece.
async fn failure(ruin: fn(Call, Answer)) -> Error {
    let read = Arc::new(Notify::new());
    let has_read = Arc::clone(&read);
    let server = Server::start(move |mut call| {
        let has_read = Arc::clone(&has_read);
        async move {
            let mut answer = call.begin();
            begin(&mut answer);
            has_read.notified().await;
            ruin(call, answer);
        }
    })
    .await;
    let mut stream = client(&server).stream_completion(request()).await.unwrap();
    assert_eq!(stream.next_text().await.unwrap().as_deref(), Some("a"));
    read.notify_one();
    let told = stream.next_text().await.unwrap_err();
    assert_eq!(stream.next_text().await.unwrap(), None);
    assert_eq!(told.trace_id(), Some(stream.trace_id()));
    let error = stream.collect().await.unwrap_err();
    assert_eq!(error.to_string(), told.to_string());
    assert_eq!(server.calls(), 1, "a stream is not made again");
    error
}

#[tokio::test]
async fn a_stream_that_is_broken_off_is_unavailable() {
    let ways: [fn(Call, Answer); 5] = [
        |_, answer| answer.reset(Reason::INTERNAL_ERROR),
        |_, answer| answer.reset(Reason::NO_ERROR),
        |_, answer| answer.cut(),
        |call, _| call.drop_connection(),
        |_, answer| {
            answer
                .end(&[("grpc-status", "13"), ("grpc-message", "Received RST_STREAM with code 2")]);
        },
    ];
    for ruin in ways {
        let error = failure(ruin).await;
        assert_eq!((error.code(), error.reason_name()), (Code::Unavailable, ""), "{error}");
    }
}

#[tokio::test]
async fn a_stream_that_ends_before_its_end_is_no_success() {
    let error = failure(|_, answer| answer.end(&[("grpc-status", "0")])).await;
    assert_eq!((error.code(), error.reason()), (Code::Internal, None));
}

#[tokio::test]
async fn a_stream_is_read_piece_by_piece_and_whole() {
    let server = Server::start(|mut call| async move {
        let mut answer = call.begin();
        begin(&mut answer);
        end(answer);
    })
    .await;
    let mut stream = client(&server).stream_completion(request()).await.unwrap();
    assert!(matches!(stream.next_event().await.unwrap(), Some(Event::Started(_))));
    assert_eq!(stream.next_text().await.unwrap().as_deref(), Some("a"));
    assert_eq!(stream.next_text().await.unwrap(), None);
    let trace_id = stream.trace_id().to_owned();
    let whole = stream.collect().await.unwrap();
    assert_eq!((whole.text(), whole.token_ids()), ("a", &[1][..]));
    assert_eq!((whole.finish_reason(), whole.trace_id), (FinishReason::EndOfText, trace_id));
}

#[tokio::test]
async fn a_deadline_ends_a_stream_on_both_sides() {
    let (reasons, mut told) = mpsc::channel(1);
    let server = Server::start(move |mut call| {
        let reasons = reasons.clone();
        async move {
            if call.number == 0 {
                return call.answer(&ListModelsResponse::default());
            }
            let mut answer = call.begin();
            begin(&mut answer);
            reasons.send(answer.given_up().await).await.unwrap();
        }
    })
    .await;
    let client = client(&server); // Its end would end the connection, and the call with it.
    list(&client).await.unwrap(); // Connected, so that the deadline is for the stream alone.
    let mut late = Request::new(request());
    late.set_timeout(Duration::from_secs(2));
    let error = client.complete(late).await.unwrap_err();
    assert_eq!((error.code(), error.reason()), (Code::DeadlineExceeded, None));
    assert!(error.trace_id().is_some());
    assert_eq!(timeout(PATIENCE, told.recv()).await.unwrap(), Some(Reason::CANCEL));
}

#[tokio::test]
async fn what_a_proxy_breaks_off_for_its_deadline_is_late() {
    let server = Server::start(|mut call| async move {
        if call.number == 0 {
            return call.answer(&ListModelsResponse::default());
        }
        let told = call.headers["grpc-timeout"].to_str().unwrap().trim_end_matches('u').to_owned();
        let mut answer = call.begin();
        begin(&mut answer);
        // Its clock is ahead.
        sleep(Duration::from_micros(told.parse::<u64>().unwrap() - 20_000)).await;
        answer.reset(Reason::INTERNAL_ERROR);
    })
    .await;
    let client = client(&server);
    list(&client).await.unwrap(); // Connected, so that the deadline is for the stream alone.
    let mut late = Request::new(request());
    late.set_timeout(Duration::from_millis(500));
    assert_eq!(client.complete(late).await.unwrap_err().code(), Code::DeadlineExceeded);
}

#[tokio::test]
async fn a_deadline_ends_a_call_that_nobody_answers() {
    let server = Server::start(|mut call| async move {
        if call.number == 0 {
            return call.answer(&ListModelsResponse::default());
        }
        call.given_up().await;
    })
    .await;
    let client = client(&server);
    list(&client).await.unwrap(); // Connected, so that the deadline is for the calls alone.
    let hasty = client.with_timeout(Duration::from_secs(1));
    assert_eq!(list(&hasty).await.unwrap_err().code(), Code::DeadlineExceeded);
    assert_eq!(hasty.complete(request()).await.unwrap_err().code(), Code::DeadlineExceeded);
    assert_eq!(server.calls(), 3, "neither is made again");
}

#[tokio::test]
async fn dropping_a_stream_cancels_it() {
    let (reasons, mut told) = mpsc::channel(1);
    let server = Server::start(move |mut call| {
        let reasons = reasons.clone();
        async move {
            let mut answer = call.begin();
            begin(&mut answer);
            reasons.send(answer.given_up().await).await.unwrap();
        }
    })
    .await;
    let client = client(&server); // Its end would end the connection, and the call with it.
    let mut stream = client.stream_completion(request()).await.unwrap();
    stream.next_text().await.unwrap();
    drop(stream);
    assert_eq!(timeout(PATIENCE, told.recv()).await.unwrap(), Some(Reason::CANCEL));
}

#[tokio::test]
async fn a_unary_call_is_made_again_while_the_server_is_unavailable() {
    let server = Server::start(|call| async move {
        match call.number {
            0 => call.drop_connection(),
            1 => call.end_as_http(StatusCode::SERVICE_UNAVAILABLE),
            2 => call.end(&[("grpc-status", "14"), ("grpc-retry-pushback-ms", "1")]),
            _ => {
                assert_eq!(call.headers["grpc-previous-rpc-attempts"], "3");
                call.answer(&ListModelsResponse::default());
            }
        }
    })
    .await;
    list(&client(&server)).await.unwrap();
    assert_eq!(server.calls(), 4);
}

#[tokio::test]
async fn what_changes_the_store_is_sent_once() {
    let server = Server::start(|call| async move { call.drop_connection() }).await;
    let models = || client(&server).models(); // Each on a connection that is whole.
    let statuses = [
        models().collect_garbage(CollectGarbageRequest::default()).await.unwrap_err(),
        models().copy_model(CopyModelRequest::default()).await.unwrap_err(),
        models().delete_model(DeleteModelRequest::default()).await.unwrap_err(),
    ];
    assert_eq!(statuses.map(|status| status.code()), [Code::Unavailable; 3]);
    assert_eq!(server.calls(), 3);
}

#[tokio::test]
async fn attempts_end_with_what_the_last_one_said() {
    let server = Server::start(|call| async move {
        let message = format!("attempt {}", call.number);
        call.end(&[("grpc-status", "14"), ("grpc-message", &message)]);
    })
    .await;
    let error = list(&client(&server)).await.unwrap_err();
    assert_eq!((error.code(), error.message()), (Code::Unavailable, "attempt 3"));
    assert_eq!(server.calls(), 4);
}

#[tokio::test]
async fn a_wait_beyond_the_deadline_is_not_begun() {
    let server = Server::start(|call| async move {
        call.end(&[("grpc-status", "14"), ("grpc-retry-pushback-ms", "60000")]);
    })
    .await;
    let begin = Instant::now();
    assert_eq!(list(&client(&server)).await.unwrap_err().code(), Code::Unavailable);
    assert!(begin.elapsed() < PATIENCE / 2);
    assert_eq!(server.calls(), 1);
}

#[tokio::test]
async fn no_other_error_is_a_reason_for_another_attempt() {
    let server = Server::start(|call| async move { call.end(&[("grpc-status", "8")]) }).await;
    assert_eq!(list(&client(&server)).await.unwrap_err().code(), Code::ResourceExhausted);
    assert_eq!(server.calls(), 1);
}

#[test]
fn what_is_held_can_cross_threads() {
    fn assert<T: Send + 'static>() {}
    fn assert_shared<T: Send + Sync + 'static>() {}
    assert::<headrace::CompletionStream>();
    assert::<headrace::ImageStream>();
    assert_shared::<Client>();
    assert_shared::<Error>();
}

#[tokio::test]
async fn nobody_listens() {
    let error = list(&at("127.0.0.1:1")).await.unwrap_err();
    assert_eq!((error.code(), error.reason()), (Code::Unavailable, None));
    assert!(error.message().starts_with("127.0.0.1:1 cannot be reached"), "{error}");
    assert!(error.message().contains("refused"), "{error}");
    assert!(error.trace_id().is_some());
}

#[tokio::test]
async fn a_call_carries_what_it_needs() {
    let (headers, mut came) = mpsc::channel(2);
    let server = Server::start(move |call| {
        let headers = headers.clone();
        async move {
            headers.send(call.headers.clone()).await.unwrap();
            call.end(&[("grpc-status", "5")]);
        }
    })
    .await;
    let client = Client::builder()
        .ignore_environment()
        .target(&server.target)
        .token("hr_abc")
        .build()
        .unwrap();
    let get = GetModelRequest { model: "smollm2:135m".into() };
    let status = client.models().get_model(get.clone()).await.unwrap_err();
    let sent = came.recv().await.unwrap();
    assert_eq!(sent["authorization"], "Bearer hr_abc");
    assert_eq!(sent["headrace-model"], "smollm2:135m");
    assert!(sent["user-agent"].to_str().unwrap().starts_with("headrace-rust/"));
    let parent: Vec<_> = sent["traceparent"].to_str().unwrap().split('-').collect();
    assert_eq!(Some(parent[1]), status.trace_id());
    assert!(!sent.contains_key("grpc-timeout"));

    let mut own = Request::new(get);
    own.set_timeout(PATIENCE);
    own.metadata_mut().insert("authorization", "Bearer other".parse().unwrap());
    own.metadata_mut().insert("headrace-model", "other".parse().unwrap());
    own.metadata_mut().insert(
        "traceparent",
        "00-0af7651916cd43dd8448eb211c80319c-b7ad6b7169203331-00".parse().unwrap(),
    );
    let error = Error::from(client.models().get_model(own).await.unwrap_err());
    let sent = came.recv().await.unwrap();
    assert_eq!(
        (&sent["authorization"], &sent["headrace-model"]),
        (&"Bearer other".parse().unwrap(), &"other".parse().unwrap())
    );
    for name in ["authorization", "headrace-model", "traceparent"] {
        assert_eq!(sent.get_all(name).iter().count(), 1, "{name}");
    }
    assert!(sent.contains_key("grpc-timeout"));
    assert_eq!(error.trace_id(), Some("0af7651916cd43dd8448eb211c80319c"));
    assert_eq!(sent["traceparent"].to_str().unwrap().split('-').nth(1), error.trace_id());
}

#[tokio::test]
async fn the_default_timeout_can_be_lifted() {
    let server = Server::start(|call| async move {
        let message = if call.headers.contains_key("grpc-timeout") { "some" } else { "none" };
        call.end(&[("grpc-status", "5"), ("grpc-message", message)]);
    })
    .await;
    let client = client(&server);
    assert_eq!(list(&client).await.unwrap_err().message(), "some");
    assert_eq!(list(&client.with_timeout(None)).await.unwrap_err().message(), "none");
}

#[cfg(feature = "opentelemetry")]
#[tokio::test]
async fn a_call_goes_on_with_the_current_span_s_trace() {
    use opentelemetry::Context;
    use opentelemetry::trace::{FutureExt, SpanContext, TraceContextExt, TraceFlags, TraceState};

    let (headers, mut came) = mpsc::channel(1);
    let server = Server::start(move |call| {
        let headers = headers.clone();
        async move {
            headers.send(call.headers.clone()).await.unwrap();
            call.answer(&ListModelsResponse::default());
        }
    })
    .await;
    let state = TraceState::from_key_value([("vendor", "1")]).unwrap();
    let span = SpanContext::new(7.into(), 9.into(), TraceFlags::SAMPLED, false, state);
    let context = Context::new().with_remote_span_context(span);
    let mut models = client(&server).models();
    let call = models.list_models(ListModelsRequest::default()).with_context(context);
    let response = call.await.unwrap();
    let sent = came.recv().await.unwrap();
    assert_eq!(sent["traceparent"], "00-00000000000000000000000000000007-0000000000000009-01");
    assert_eq!(sent["tracestate"], "vendor=1");
    assert_eq!(response.trace_id(), Some("00000000000000000000000000000007"));
}

#[cfg(unix)]
#[tokio::test]
async fn a_unix_socket_does_as_well() {
    let directory = std::env::temp_dir().join(format!("headrace-{}", std::process::id()));
    std::fs::create_dir_all(&directory).unwrap();
    let path = directory.join("c.sock");
    let listener = tokio::net::UnixListener::bind(&path).unwrap();
    let serving = tokio::spawn(async move {
        let (socket, _) = listener.accept().await.unwrap();
        let answer = |call: Call| async move { call.answer(&ListModelsResponse::default()) };
        server::serve(socket, answer, Arc::default()).await;
    });
    let outcome = list(&at(&format!("unix:{}", path.display()))).await;
    std::fs::remove_dir_all(&directory).unwrap();
    serving.abort();
    outcome.unwrap();
}
