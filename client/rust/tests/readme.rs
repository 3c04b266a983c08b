//! What the README shows, word for word, so that it is known to compile.

#![allow(dead_code, unused_variables)]

use headrace::v1::StreamCompletionRequest;
use headrace::{Client, Error};

#[test]
fn the_readme_shows_what_compiles() {
    let bare = |text: &str| text.split_whitespace().collect::<String>();
    let compiled = bare(include_str!("readme.rs")) + &bare(include_str!("../examples/tour.rs"));
    let blocks = include_str!("../README.md").split("```rust\n").skip(1);
    let shown: Vec<_> = blocks.filter_map(|block| block.split("```").next()).collect();
    assert_eq!(shown.len(), 7);
    for block in shown {
        assert!(compiled.contains(&bare(block)), "{block}");
    }
}

async fn others(client: Client) -> Result<(), Error> {
    use headrace::v1::{EmbedRequest, EmbeddingInput, ListModelsRequest, embedding_input::Input};

    let listed = client.models().list_models(ListModelsRequest::default()).await?.into_inner();
    for model in listed.models {
        println!("{} {}", model.name, model.size_bytes);
    }

    let inputs = vec![EmbeddingInput { input: Some(Input::Text("a red rose".into())) }];
    let request = EmbedRequest { model: "minilm:l6".into(), inputs, ..Default::default() };
    let answer = client.embeddings().embed(request).await?.into_inner();
    println!("{:?}", answer.embeddings[0].values);
    Ok(())
}

async fn stream(client: Client) -> Result<(), Error> {
    use headrace::v1::{ChatMessage, SamplingOptions, StreamCompletionRequest};

    let messages =
        [ChatMessage::system("Answer in one word."), ChatMessage::user("Name a colour.")];
    let request = StreamCompletionRequest {
        max_tokens: Some(8),
        sampling: Some(SamplingOptions {
            temperature: Some(0.7),
            seed: Some(7),
            ..Default::default()
        }),
        ..StreamCompletionRequest::from_messages("smollm2:135m", messages)
    };
    let mut stream = client.stream_completion(request).await?;
    while let Some(text) = stream.next_text().await? {
        print!("{text}");
    }
    let whole = stream.collect().await?; // what has been read, put together
    println!("\n{:?}, {} tokens", whole.finish_reason(), whole.usage().output_tokens);
    Ok(())
}

async fn image(client: Client) -> Result<(), Box<dyn std::error::Error>> {
    use headrace::v1::StreamImageRequest;

    let request = StreamImageRequest::from_prompt("emoji:64", "a red rose");
    let drawn = client.draw(request).await?;
    std::fs::write("rose.png", &drawn.images[0].data)?;
    Ok(())
}

async fn errors(client: Client, request: StreamCompletionRequest) {
    use headrace::v1::ErrorReason;

    if let Err(error) = client.complete(request).await {
        match error.reason() {
            Some(ErrorReason::InvalidRequest) => {
                for violation in error.violations() {
                    println!("{}: {}", violation.field, violation.description);
                }
            }
            Some(ErrorReason::ModelNotFound) => {
                println!("nearest: {}", error.metadata()["nearest"]);
            }
            Some(ErrorReason::QueueFull) => println!("again in {:?}", error.retry_after()),
            _ => println!("{:?} {}: {error}", error.code(), error.reason_name()),
        }
    }
}

async fn deadlines(
    request: StreamCompletionRequest,
    again: StreamCompletionRequest,
) -> Result<(), Error> {
    use headrace::{Client, tonic::Request};
    use std::time::Duration;

    let client = Client::builder().timeout(Duration::from_secs(30)).build()?; // for each call

    let mut request = Request::new(request);
    request.set_timeout(Duration::from_secs(5)); // for this one
    client.complete(request).await?;

    client.with_timeout(None).complete(again).await?; // the same connection, without a limit
    Ok(())
}

fn tls() -> Result<(), Box<dyn std::error::Error>> {
    use headrace::Client;

    let client = Client::builder()
        .target("https://gpu.example:50151")
        .tls_ca(std::fs::read("tls/ca.crt")?) // otherwise the system's authorities
        .client_certificate(std::fs::read("tls/client.crt")?, std::fs::read("tls/client.key")?)
        .token(std::env::var("MY_TOKEN")?)
        .build()?;
    Ok(())
}
