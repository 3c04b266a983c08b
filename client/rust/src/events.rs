//! What the streams have in common: events that a fold holds to their contract and puts together.

use std::future::poll_fn;
use std::pin::Pin;
use std::task::{Context, Poll, ready};

use futures_core::Stream;
use tonic::{Response, Streaming};

use crate::{Error, Traced};

/// Puts the events of a stream together. Pure.
pub(crate) trait Fold {
    /// What travels.
    type Message;
    /// What is in it.
    type Event;
    /// What comes of them all.
    type Whole;

    /// The event of a message. None: one that this version does not know.
    fn event(message: Self::Message) -> Option<Self::Event>;

    /// Takes the next event, or says how it breaks the contract.
    fn add(&mut self, event: &Self::Event) -> Result<(), Error>;

    /// Whether the last event has been.
    fn is_complete(&self) -> bool;

    /// The whole; None: it is not complete.
    fn whole(self, trace_id: String) -> Option<Self::Whole>;
}

/// The order of every stream: it starts once, sends output after that, and nothing once it has been
/// completed.
#[derive(Default)]
pub(crate) struct Order<S, C> {
    pub(crate) started: Option<S>,
    pub(crate) completed: Option<C>,
}

impl<S: Clone, C> Order<S, C> {
    pub(crate) fn start(&mut self, started: &S) -> Result<(), Error> {
        match self.started.replace(started.clone()) {
            None => Ok(()),
            Some(_) => Err(Error::broken("the stream started twice")),
        }
    }

    pub(crate) fn require_started(&self) -> Result<(), Error> {
        match self.started {
            Some(_) => Ok(()),
            None => Err(Error::broken("the stream sent output before it had started")),
        }
    }

    pub(crate) fn require_incomplete(&self) -> Result<(), Error> {
        match self.completed {
            None => Ok(()),
            Some(_) => Err(Error::broken("the stream went on after it had been completed")),
        }
    }
}

/// A stream and its fold. It ends quietly only when it is complete.
pub(crate) struct Events<F: Fold> {
    /// None: it is over, or failed. Dropping it cancels the call.
    messages: Option<Streaming<F::Message>>,
    fold: F,
    failure: Option<Error>,
    pub(crate) trace_id: String,
}

impl<F: Fold + Unpin> Events<F> {
    pub(crate) fn new(response: Response<Streaming<F::Message>>, fold: F) -> Self {
        let trace_id = response.trace_id().unwrap_or_default().to_owned();
        Self { messages: Some(response.into_inner()), fold, failure: None, trace_id }
    }

    pub(crate) async fn next(&mut self) -> Result<Option<F::Event>, Error> {
        poll_fn(|cx| self.poll(cx)).await.transpose()
    }

    pub(crate) async fn collect(mut self) -> Result<F::Whole, Error> {
        while self.next().await?.is_some() {}
        let trace_id = self.trace_id.clone();
        match self.failure {
            // It was told already, to whoever read it until then.
            Some(error) => Err(error),
            None => self.fold.whole(self.trace_id).ok_or_else(Error::incomplete),
        }
        .map_err(|error| error.with_trace_id(&trace_id))
    }

    pub(crate) fn poll(&mut self, cx: &mut Context<'_>) -> Poll<Option<Result<F::Event, Error>>> {
        loop {
            let Some(messages) = &mut self.messages else { return Poll::Ready(None) };
            let outcome = match ready!(Pin::new(messages).poll_next(cx)) {
                Some(Ok(message)) => match F::event(message) {
                    Some(event) => self.fold.add(&event).map(|()| event),
                    None => continue,
                },
                Some(Err(status)) => Err(status.into()),
                None if self.fold.is_complete() => {
                    self.messages = None;
                    return Poll::Ready(None);
                }
                None => Err(Error::incomplete()),
            };
            return Poll::Ready(Some(outcome.map_err(|error| {
                self.messages = None;
                let error = error.with_trace_id(&self.trace_id);
                self.failure = Some(error.clone());
                error
            })));
        }
    }
}
