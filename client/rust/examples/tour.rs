//! Continues a text.

use headrace::{Client, v1::StreamCompletionRequest};

#[tokio::main(flavor = "current_thread")]
async fn main() -> Result<(), headrace::Error> {
    let client = Client::from_env()?;
    let request = StreamCompletionRequest {
        max_tokens: Some(16),
        ..StreamCompletionRequest::from_prompt("smollm2:135m", "Once upon a time")
    };
    let answer = client.complete(request).await?;
    println!("{}", answer.text());
    Ok(())
}
