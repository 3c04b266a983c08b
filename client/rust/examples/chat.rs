//! Asks a model a question and prints the answer as it comes.
//!
//!     cargo run --example chat -- "Name a colour." smollm2:135m

use std::io::Write;

use headrace::v1::stream_completion_response::Event;
use headrace::v1::{ChatMessage, ErrorReason, SamplingOptions, StreamCompletionRequest};
use headrace::{Client, Error};

#[tokio::main(flavor = "current_thread")]
async fn main() {
    let mut arguments = std::env::args().skip(1);
    let question = arguments
        .next()
        .unwrap_or_else(|| "What is the capital of France? Explain briefly.".into());
    let model = arguments.next().unwrap_or_else(|| "smollm2:135m".into());
    if let Err(error) = ask(&model, &question).await {
        eprintln!("{error}");
        if error.reason() == Some(ErrorReason::ModelNotFound) {
            eprintln!("`headrace list` shows what there is, `headrace pull` gets more");
        }
        std::process::exit(1);
    }
}

async fn ask(model: &str, question: &str) -> Result<(), Error> {
    let client = Client::from_env()?;
    let request = StreamCompletionRequest {
        max_tokens: Some(16),
        sampling: Some(SamplingOptions { temperature: Some(0.0), ..Default::default() }),
        ..StreamCompletionRequest::from_messages(model, [ChatMessage::user(question)])
    };
    let mut stream = client.stream_completion(request).await?;
    while let Some(event) = stream.next_event().await? {
        match event {
            Event::Progress(progress) => {
                if let Some(fraction) = progress.load_fraction {
                    eprintln!("loading {:.0}%", fraction * 100.0);
                }
            }
            Event::Delta(delta) => {
                print!("{}", delta.text);
                // Whoever reads may have gone; that is no reason to stop.
                let _ = std::io::stdout().flush();
            }
            Event::Started(_) | Event::Completed(_) => {}
        }
    }
    let whole = stream.collect().await?;
    println!();
    eprintln!(
        "{} tokens, {}, trace {}",
        whole.usage().output_tokens,
        whole.finish_reason().as_str_name(),
        whole.trace_id,
    );
    Ok(())
}
