use std::time::Duration;

use tonic::IntoRequest;

use crate::health::health_client::HealthClient;
use crate::v1::completion_service_client::CompletionServiceClient;
use crate::v1::embedding_service_client::EmbeddingServiceClient;
use crate::v1::image_service_client::ImageServiceClient;
use crate::v1::model_service_client::ModelServiceClient;
use crate::v1::runner_service_client::RunnerServiceClient;
use crate::v1::score_service_client::ScoreServiceClient;
use crate::v1::tokenize_service_client::TokenizeServiceClient;
use crate::v1::{StreamCompletionRequest, StreamImageRequest};
use crate::{
    Builder, Channel, Completion, CompletionStream, Error, ImageStream, Images, MAX_MESSAGE_BYTES,
};

/// A connection to a controller, or to a runner.
///
/// It connects at the first call. Clones are cheap and share the connection. Dropping a call's
/// future or its stream cancels the call, on the server too.
#[derive(Clone, Debug)]
pub struct Client {
    channel: Channel,
}

impl Client {
    /// A client of the server at `target`, as [`Builder::target`] has it. The rest is from the
    /// environment.
    ///
    /// # Errors
    ///
    /// As [`Builder::build`].
    pub fn new(target: impl Into<String>) -> Result<Self, Error> {
        Self::builder().target(target).build()
    }

    /// A client of the server that the environment names, else of the one on this machine.
    ///
    /// # Errors
    ///
    /// As [`Builder::build`].
    pub fn from_env() -> Result<Self, Error> {
        Self::builder().build()
    }

    /// Says more about a client than [`Client::new`].
    pub fn builder() -> Builder {
        Builder::default()
    }

    pub(crate) fn over(channel: Channel) -> Self {
        Self { channel }
    }

    /// The same connection with another default for how long a call may take. `None`: no limit.
    ///
    /// A single call may also say it itself, by [`tonic::Request::set_timeout`], which panics for more
    /// than gRPC can carry, 99,999,999 hours. Here any will do.
    #[must_use]
    pub fn with_timeout(&self, timeout: impl Into<Option<Duration>>) -> Self {
        let mut client = self.clone();
        client.channel.timeout = timeout.into();
        client
    }

    /// Where the server is: `host:port`, or `unix:/path`.
    #[must_use]
    pub fn target(&self) -> &str {
        &self.channel.target
    }

    /// For stubs that are not made here.
    #[must_use]
    pub fn channel(&self) -> Channel {
        self.channel.clone()
    }

    /// Generates token by token.
    ///
    /// # Errors
    ///
    /// The call failed before the first event could come.
    pub async fn stream_completion(
        &self,
        request: impl IntoRequest<StreamCompletionRequest>,
    ) -> Result<CompletionStream, Error> {
        let response = self.completions().stream_completion(request).await?;
        Ok(CompletionStream::new(response))
    }

    /// Generates, and gives the whole.
    ///
    /// # Errors
    ///
    /// The call failed, or ended without being complete.
    pub async fn complete(
        &self,
        request: impl IntoRequest<StreamCompletionRequest>,
    ) -> Result<Completion, Error> {
        self.stream_completion(request).await?.collect().await
    }

    /// Draws, and tells how it goes.
    ///
    /// # Errors
    ///
    /// The call failed before the first event could come.
    pub async fn stream_image(
        &self,
        request: impl IntoRequest<StreamImageRequest>,
    ) -> Result<ImageStream, Error> {
        let request = request.into_request();
        let count = request.get_ref().count.unwrap_or(1);
        let response = self.images().stream_image(request).await?;
        Ok(ImageStream::new(response, count))
    }

    /// Draws, and gives the files, each held against its checksum.
    ///
    /// # Errors
    ///
    /// The call failed, ended without being complete, or an image was damaged on its way
    /// ([`Code::DataLoss`](tonic::Code::DataLoss)).
    pub async fn draw(
        &self,
        request: impl IntoRequest<StreamImageRequest>,
    ) -> Result<Images, Error> {
        self.stream_image(request).await?.collect().await
    }

    /// The stub for text.
    #[must_use]
    pub fn completions(&self) -> CompletionServiceClient<Channel> {
        CompletionServiceClient::new(self.channel()).max_decoding_message_size(MAX_MESSAGE_BYTES)
    }

    /// The stub for images.
    #[must_use]
    pub fn images(&self) -> ImageServiceClient<Channel> {
        ImageServiceClient::new(self.channel()).max_decoding_message_size(MAX_MESSAGE_BYTES)
    }

    /// The stub for vectors.
    #[must_use]
    pub fn embeddings(&self) -> EmbeddingServiceClient<Channel> {
        EmbeddingServiceClient::new(self.channel()).max_decoding_message_size(MAX_MESSAGE_BYTES)
    }

    /// The stub for scores.
    #[must_use]
    pub fn scores(&self) -> ScoreServiceClient<Channel> {
        ScoreServiceClient::new(self.channel()).max_decoding_message_size(MAX_MESSAGE_BYTES)
    }

    /// The stub for tokens and chat templates.
    #[must_use]
    pub fn tokens(&self) -> TokenizeServiceClient<Channel> {
        TokenizeServiceClient::new(self.channel()).max_decoding_message_size(MAX_MESSAGE_BYTES)
    }

    /// The stub for models, which a controller serves.
    #[must_use]
    pub fn models(&self) -> ModelServiceClient<Channel> {
        ModelServiceClient::new(self.channel()).max_decoding_message_size(MAX_MESSAGE_BYTES)
    }

    /// The stub for one runner, which a runner serves.
    #[must_use]
    pub fn runner(&self) -> RunnerServiceClient<Channel> {
        RunnerServiceClient::new(self.channel()).max_decoding_message_size(MAX_MESSAGE_BYTES)
    }

    /// The stub for health.
    #[must_use]
    pub fn health(&self) -> HealthClient<Channel> {
        HealthClient::new(self.channel()).max_decoding_message_size(MAX_MESSAGE_BYTES)
    }
}
