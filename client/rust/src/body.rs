//! The body of an answer: ends at the deadline, names what the transport did, carries the trace id.

use std::pin::Pin;
use std::sync::Arc;
use std::task::{Context, Poll, ready};
use std::time::Duration;

use http_body::{Body as HttpBody, Frame};
use prost::bytes::Bytes;
use tokio::time::{Instant, Sleep, sleep_until};
use tonic::Status;
use tonic::body::Body;

use crate::trace::TraceId;

/// What of a call its failures need to know.
#[derive(Clone, Debug)]
pub(crate) struct Call {
    pub(crate) target: Arc<str>,
    pub(crate) trace: TraceId,
    pub(crate) deadline: Option<Instant>,
}

/// By how much what breaks a call off for its deadline may be ahead of it: a proxy has a clock of
/// its own, and may count whole milliseconds.
const CLOCK_SLACK: Duration = Duration::from_millis(50);

impl Call {
    /// Whether what ends the call now ends it for its deadline.
    fn is_late(&self) -> bool {
        self.deadline.is_some_and(|at| at <= Instant::now() + CLOCK_SLACK)
    }

    pub(crate) fn late(&self) -> Status {
        self.trace.note_in(Status::deadline_exceeded("the call's deadline passed"))
    }

    /// The status of a transport that failed. All its failures are one to the caller: the server
    /// is not to be had. What it was can be read in the message.
    pub(crate) fn failed(&self, error: &(dyn std::error::Error + 'static)) -> Status {
        if self.deadline.is_some_and(|at| at <= Instant::now()) {
            return self.late();
        }
        let mut message = format!("{} cannot be reached, or the connection broke", self.target);
        let mut cause = error.source();
        while let Some(error) = cause {
            if error.is::<tonic::TimeoutExpired>() {
                return self.late();
            }
            let text = error.to_string();
            if !message.ends_with(&text) {
                message.push_str(": ");
                message.push_str(&text);
            }
            cause = error.source();
        }
        self.trace.note_in(Status::unavailable(message))
    }

    fn broken_off(&self) -> Status {
        if self.is_late() {
            return self.late();
        }
        let message = format!("{} or a proxy before it broke the call off", self.target);
        self.trace.note_in(Status::unavailable(message))
    }
}

/// The body of one answer.
pub(crate) struct Answer {
    /// None: it is over.
    body: Option<Body>,
    call: Call,
    timer: Option<Pin<Box<Sleep>>>,
    /// Whether a status is yet to come.
    open: bool,
}

impl Answer {
    pub(crate) fn new(body: Body, call: Call, open: bool) -> Self {
        let timer = call.deadline.map(|at| Box::pin(sleep_until(at)));
        Self { body: Some(body), call, timer, open }
    }

    /// Ends the call, also on the server.
    fn fail(&mut self, status: Status) -> Poll<Option<Result<Frame<Bytes>, Status>>> {
        self.body = None;
        Poll::Ready(Some(Err(status)))
    }
}

impl HttpBody for Answer {
    type Data = Bytes;
    type Error = Status;

    fn poll_frame(
        mut self: Pin<&mut Self>,
        cx: &mut Context<'_>,
    ) -> Poll<Option<Result<Frame<Bytes>, Status>>> {
        let this = &mut *self;
        let Some(body) = &mut this.body else { return Poll::Ready(None) };
        if let Some(timer) = &mut this.timer
            && timer.as_mut().poll(cx).is_ready()
        {
            let late = this.call.late();
            return this.fail(late);
        }
        match ready!(Pin::new(body).poll_frame(cx)) {
            Some(Ok(mut frame)) => {
                if let Some(trailers) = frame.trailers_mut() {
                    this.open = false;
                    this.call.trace.note(trailers);
                }
                Poll::Ready(Some(Ok(frame)))
            }
            Some(Err(status)) => {
                let call = &this.call;
                let failed = if call.is_late() { call.late() } else { call.failed(&status) };
                this.fail(failed)
            }
            None if this.open => {
                let broken = this.call.broken_off();
                this.fail(broken)
            }
            None => {
                this.body = None;
                Poll::Ready(None)
            }
        }
    }
}
