use std::fmt;
use std::future::poll_fn;
use std::pin::Pin;
use std::task::{Context, Poll, ready};

use futures_core::Stream;
use tonic::{Response, Streaming};

use crate::Error;
use crate::events::{self, Events, Order};
use crate::v1::stream_completion_response::Event;
use crate::v1::{
    ChoiceResult, CompletionCompleted, CompletionDelta, CompletionStarted, FinishReason,
    StreamCompletionResponse, TokenLogprob, ToolCall, ToolCallPart, Usage,
};

/// A completion as it is generated: a `Stream` of events.
///
/// It ends quietly only when it is complete; otherwise its last item is the error that ended it.
/// Dropping it ends the generation on the server.
#[must_use = "a stream that is dropped is cancelled"]
pub struct CompletionStream(Events<Fold>);

/// A whole completion.
#[derive(Clone, Debug)]
#[non_exhaustive]
pub struct Completion {
    /// What was generated: as many as the request's `n`, by index.
    pub choices: Vec<Choice>,
    /// What served the request and with which settings.
    pub started: CompletionStarted,
    /// How it ended: usage, timings, moves to other runners.
    pub completed: CompletionCompleted,
    /// The trace of the call, 32 hexadecimal digits.
    pub trace_id: String,
}

/// One output of a completion.
#[derive(Clone, Debug, Default)]
#[non_exhaustive]
pub struct Choice {
    /// The text, without what is reasoning or a tool call.
    pub text: String,
    /// The reasoning.
    pub reasoning: String,
    /// The tools that the model calls. A call that the output ended in has arguments that are no
    /// whole JSON.
    pub tool_calls: Vec<ToolCall>,
    /// The tokens, the end-of-text token included.
    pub token_ids: Vec<u32>,
    /// One for each token, where the request asked for them.
    pub logprobs: Vec<TokenLogprob>,
    /// How it ended.
    pub result: ChoiceResult,
}

impl Completion {
    /// The text of the first choice.
    #[must_use]
    pub fn text(&self) -> &str {
        &self.choices[0].text
    }

    /// The tokens of the first choice.
    #[must_use]
    pub fn token_ids(&self) -> &[u32] {
        &self.choices[0].token_ids
    }

    /// Why the first choice ended.
    #[must_use]
    pub fn finish_reason(&self) -> FinishReason {
        self.choices[0].result.finish_reason()
    }

    /// The tokens of the request.
    #[must_use]
    pub fn usage(&self) -> Usage {
        self.completed.usage.unwrap_or_default()
    }

    /// How many times the stream moved to another runner, since the one before was gone. What was
    /// sent is not affected.
    #[must_use]
    pub fn resumes(&self) -> i32 {
        self.completed.resumed
    }
}

impl CompletionStream {
    pub(crate) fn new(response: Response<Streaming<StreamCompletionResponse>>) -> Self {
        Self(Events::new(response, Fold::default()))
    }

    /// The trace of the call, 32 hexadecimal digits.
    #[must_use]
    pub fn trace_id(&self) -> &str {
        &self.0.trace_id
    }

    /// The next event; `None` after the last.
    ///
    /// # Errors
    ///
    /// The call failed, or ended without being complete.
    pub async fn next_event(&mut self) -> Result<Option<Event>, Error> {
        self.0.next().await
    }

    /// The next piece of text of the first choice; `None` at the end. Other events are passed over,
    /// and are still part of what [`collect`](Self::collect) gives.
    ///
    /// # Errors
    ///
    /// The call failed, or ended without being complete.
    pub async fn next_text(&mut self) -> Result<Option<String>, Error> {
        poll_fn(|cx| self.poll_text(cx)).await.transpose()
    }

    /// The text of the first choice, piece by piece.
    pub fn text(&mut self) -> impl Stream<Item = Result<String, Error>> + Unpin + '_ {
        Texts(self)
    }

    /// Reads to the end and gives the whole, what was read before included.
    ///
    /// # Errors
    ///
    /// The call failed, or ended without being complete.
    pub async fn collect(self) -> Result<Completion, Error> {
        self.0.collect().await
    }

    fn poll_text(&mut self, cx: &mut Context<'_>) -> Poll<Option<Result<String, Error>>> {
        loop {
            match ready!(self.0.poll(cx)) {
                Some(Ok(Event::Delta(delta))) if delta.choice == 0 && !delta.text.is_empty() => {
                    return Poll::Ready(Some(Ok(delta.text)));
                }
                Some(Ok(_)) => {}
                Some(Err(error)) => return Poll::Ready(Some(Err(error))),
                None => return Poll::Ready(None),
            }
        }
    }
}

impl Stream for CompletionStream {
    type Item = Result<Event, Error>;

    fn poll_next(mut self: Pin<&mut Self>, cx: &mut Context<'_>) -> Poll<Option<Self::Item>> {
        self.0.poll(cx)
    }
}

impl fmt::Debug for CompletionStream {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("CompletionStream")
            .field("trace_id", &self.0.trace_id)
            .finish_non_exhaustive()
    }
}

struct Texts<'a>(&'a mut CompletionStream);

impl Stream for Texts<'_> {
    type Item = Result<String, Error>;

    fn poll_next(mut self: Pin<&mut Self>, cx: &mut Context<'_>) -> Poll<Option<Self::Item>> {
        self.0.poll_text(cx)
    }
}

/// Folds the events of a stream into the whole, and holds the stream to its word. Pure.
#[derive(Default)]
struct Fold {
    order: Order<CompletionStarted, CompletionCompleted>,
    choices: Vec<Choice>,
}

/// More choices than a request may ask for are a server's mistake, and not to be made room for.
const MOST_CHOICES: usize = 16;

impl events::Fold for Fold {
    type Message = StreamCompletionResponse;
    type Event = Event;
    type Whole = Completion;

    fn event(message: StreamCompletionResponse) -> Option<Event> {
        message.event
    }

    fn add(&mut self, event: &Event) -> Result<(), Error> {
        self.order.require_incomplete()?;
        match event {
            Event::Progress(_) => {}
            Event::Started(started) => self.order.start(started)?,
            Event::Delta(delta) => {
                self.order.require_started()?;
                self.choice(delta.choice)?.add(delta)?;
            }
            Event::Completed(completed) => {
                self.order.require_started()?;
                for result in &completed.choices {
                    self.choice(result.index)?.result = result.clone();
                }
                if completed.choices.is_empty() || completed.choices.len() != self.choices.len() {
                    let message = "the stream was completed without the ends of its choices";
                    return Err(Error::broken(message));
                }
                self.order.completed = Some(completed.clone());
            }
        }
        Ok(())
    }

    fn is_complete(&self) -> bool {
        self.order.completed.is_some()
    }

    fn whole(self, trace_id: String) -> Option<Completion> {
        let (started, completed) = self.order.started.zip(self.order.completed)?;
        Some(Completion { choices: self.choices, started, completed, trace_id })
    }
}

impl Fold {
    fn choice(&mut self, index: i32) -> Result<&mut Choice, Error> {
        let index = usize::try_from(index).unwrap_or(MOST_CHOICES);
        if index >= MOST_CHOICES {
            return Err(Error::broken("the stream has a choice that no request can ask for"));
        }
        if index >= self.choices.len() {
            self.choices.resize_with(index + 1, Choice::default);
        }
        Ok(&mut self.choices[index])
    }
}

impl Choice {
    fn add(&mut self, delta: &CompletionDelta) -> Result<(), Error> {
        self.text.push_str(&delta.text);
        self.reasoning.push_str(&delta.reasoning);
        self.token_ids.extend(&delta.token_ids);
        self.logprobs.extend_from_slice(&delta.logprobs);
        delta.tool_calls.iter().try_for_each(|part| self.add_part(part))
    }

    fn add_part(&mut self, part: &ToolCallPart) -> Result<(), Error> {
        let (index, first) = (usize::try_from(part.index).ok(), part.name.as_ref());
        if let Some(name) = first
            && index == Some(self.tool_calls.len())
        {
            self.tool_calls.push(ToolCall {
                id: part.id.clone().unwrap_or_default(),
                name: name.clone(),
                arguments_json: part.arguments_json.clone(),
            });
            return Ok(());
        }
        match index.and_then(|index| self.tool_calls.get_mut(index)) {
            Some(call) if first.is_none() => call.arguments_json.push_str(&part.arguments_json),
            _ => {
                let message = "a part of a tool call does not follow the one before";
                return Err(Error::broken(message));
            }
        }
        Ok(())
    }
}

#[cfg(test)]
#[path = "completion_tests.rs"]
mod tests;
