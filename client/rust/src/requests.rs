//! Beginnings of requests, for what most of them have in common.

use crate::v1::stream_completion_request::Input;
use crate::v1::{ChatInput, ChatMessage, ChatRole, StreamCompletionRequest, StreamImageRequest};

impl StreamCompletionRequest {
    /// Continues a text, taken as it is, without a chat template. The rest is the server's default.
    pub fn from_prompt(model: impl Into<String>, prompt: impl Into<String>) -> Self {
        let input = Some(Input::Prompt(prompt.into()));
        Self { model: model.into(), input, ..Self::default() }
    }

    /// Says the next turn of a chat, by the model's own template. The rest is the server's default.
    pub fn from_messages(
        model: impl Into<String>,
        messages: impl IntoIterator<Item = ChatMessage>,
    ) -> Self {
        let messages = messages.into_iter().collect();
        let input = Some(Input::Chat(ChatInput { messages, ..ChatInput::default() }));
        Self { model: model.into(), input, ..Self::default() }
    }
}

impl StreamImageRequest {
    /// Draws one image. The rest is the model's own.
    pub fn from_prompt(model: impl Into<String>, prompt: impl Into<String>) -> Self {
        Self { model: model.into(), prompt: prompt.into(), ..Self::default() }
    }
}

impl ChatMessage {
    /// A message of `role`.
    pub fn of(role: ChatRole, content: impl Into<String>) -> Self {
        Self { role: role.into(), content: content.into(), ..Self::default() }
    }

    /// Instructions above the conversation.
    pub fn system(content: impl Into<String>) -> Self {
        Self::of(ChatRole::System, content)
    }

    /// What the person says.
    pub fn user(content: impl Into<String>) -> Self {
        Self::of(ChatRole::User, content)
    }

    /// What the model said.
    pub fn assistant(content: impl Into<String>) -> Self {
        Self::of(ChatRole::Assistant, content)
    }

    /// What the call of a tool gave, by the id of the call.
    pub fn tool(call: impl Into<String>, content: impl Into<String>) -> Self {
        Self { tool_call_id: Some(call.into()), ..Self::of(ChatRole::Tool, content) }
    }
}
