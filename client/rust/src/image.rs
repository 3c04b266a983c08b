use std::collections::BTreeMap;
use std::fmt;
use std::pin::Pin;
use std::task::{Context, Poll};

use futures_core::Stream;
use sha2::{Digest, Sha256};
use tonic::{Code, Response, Streaming};

use crate::Error;
use crate::events::{self, Events, Order};
use crate::v1::stream_image_response::Event;
use crate::v1::{ImageChunk, ImageCompleted, ImageResult, ImageStarted, StreamImageResponse};

/// Images as they are drawn: a `Stream` of events.
///
/// It ends quietly only when all images are there, and whole; otherwise its last item is the error
/// that ended it. Dropping it ends the drawing on the server.
#[must_use = "a stream that is dropped is cancelled"]
pub struct ImageStream(Events<Fold>);

/// All images of a request.
#[derive(Clone, Debug)]
#[non_exhaustive]
pub struct Images {
    /// The images, by index.
    pub images: Vec<Image>,
    /// What served the request and with which settings.
    pub started: ImageStarted,
    /// How it ended: timings, moves to other runners.
    pub completed: ImageCompleted,
    /// The trace of the call, 32 hexadecimal digits.
    pub trace_id: String,
}

/// A finished image.
#[derive(Clone)]
#[non_exhaustive]
pub struct Image {
    /// The file.
    pub data: Vec<u8>,
    /// Its seed, size, media type, and the checksum that the file was found to have.
    pub result: ImageResult,
}

impl ImageStream {
    pub(crate) fn new(response: Response<Streaming<StreamImageResponse>>, count: i32) -> Self {
        Self(Events::new(response, Fold::new(count)))
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
    /// The call failed, ended without being complete, or an image was damaged on its way.
    pub async fn next_event(&mut self) -> Result<Option<Event>, Error> {
        self.0.next().await
    }

    /// Reads to the end and gives the images, those read before included.
    ///
    /// # Errors
    ///
    /// The call failed, ended without being complete, or an image was damaged on its way.
    pub async fn collect(self) -> Result<Images, Error> {
        self.0.collect().await
    }
}

impl Stream for ImageStream {
    type Item = Result<Event, Error>;

    fn poll_next(mut self: Pin<&mut Self>, cx: &mut Context<'_>) -> Poll<Option<Self::Item>> {
        self.0.poll(cx)
    }
}

impl fmt::Debug for ImageStream {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("ImageStream").field("trace_id", &self.0.trace_id).finish_non_exhaustive()
    }
}

impl fmt::Debug for Image {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("Image").field("result", &self.result).finish_non_exhaustive()
    }
}

/// Folds the events of a stream into files, and holds the stream to its word. Pure.
struct Fold {
    count: i32,
    order: Order<ImageStarted, ImageCompleted>,
    files: BTreeMap<i32, Vec<u8>>,
    images: Vec<Image>,
}

impl events::Fold for Fold {
    type Message = StreamImageResponse;
    type Event = Event;
    type Whole = Images;

    fn event(message: StreamImageResponse) -> Option<Event> {
        message.event
    }

    fn add(&mut self, event: &Event) -> Result<(), Error> {
        self.order.require_incomplete()?;
        match event {
            Event::Progress(_) | Event::Preview(_) => {}
            Event::Started(started) => self.order.start(started)?,
            Event::Chunk(chunk) => {
                self.order.require_started()?;
                self.add_chunk(chunk)?;
            }
            Event::Completed(completed) => {
                self.order.require_started()?;
                self.complete(completed)?;
                self.order.completed = Some(completed.clone());
            }
        }
        Ok(())
    }

    fn is_complete(&self) -> bool {
        self.order.completed.is_some()
    }

    fn whole(self, trace_id: String) -> Option<Images> {
        let (started, completed) = self.order.started.zip(self.order.completed)?;
        Some(Images { images: self.images, started, completed, trace_id })
    }
}

impl Fold {
    /// `count`: images that were asked for.
    fn new(count: i32) -> Self {
        Self { count, order: Order::default(), files: BTreeMap::new(), images: Vec::new() }
    }

    fn add_chunk(&mut self, chunk: &ImageChunk) -> Result<(), Error> {
        let file = self.files.entry(chunk.index).or_default();
        if usize::try_from(chunk.offset) != Ok(file.len()) {
            let message = format!("the stream left out a part of image {}", chunk.index);
            return Err(Error::broken(message));
        }
        file.extend_from_slice(&chunk.data);
        Ok(())
    }

    fn complete(&mut self, completed: &ImageCompleted) -> Result<(), Error> {
        for result in &completed.images {
            let data = self.files.remove(&result.index).unwrap_or_default();
            if checksum(&data) != result.sha256 {
                let message = format!(
                    "image {} was damaged on its way: its {} bytes have not the checksum that the \
                     server names; ask again with the same seed",
                    result.index,
                    data.len(),
                );
                return Err(Error::new(Code::DataLoss, message));
            }
            self.images.push(Image { data, result: result.clone() });
        }
        let indices = completed.images.iter().map(|image| image.index);
        if !indices.eq(0..self.count) || !self.files.is_empty() {
            let message =
                format!("the stream was completed without just the {} asked for", self.count);
            return Err(Error::broken(message));
        }
        Ok(())
    }
}

fn checksum(data: &[u8]) -> String {
    Sha256::digest(data).iter().fold(String::new(), |text, byte| text + &format!("{byte:02x}"))
}

#[cfg(test)]
#[path = "image_tests.rs"]
mod tests;
