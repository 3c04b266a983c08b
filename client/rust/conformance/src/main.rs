//! The conformance suite's driver: a command a line on standard input, its outcome a line on
//! standard output. See `tests/conformance/README.md`.

mod command;
mod json;
mod reflective;

use std::error::Error;
use std::io::{BufRead, Write};

use serde_json::Value;
use tokio::sync::mpsc;

use command::{Command, Driver};

#[tokio::main(flavor = "current_thread")]
async fn main() -> Result<(), Box<dyn Error>> {
    // Reading blocks, and connections are to be looked after meanwhile.
    let (lines, mut read) = mpsc::channel(1);
    std::thread::spawn(move || {
        for line in std::io::stdin().lock().lines() {
            if lines.blocking_send(line).is_err() {
                break;
            }
        }
    });
    let mut driver = Driver::default();
    while let Some(line) = read.recv().await {
        let command: Command = serde_json::from_str(&line?)?;
        let answer: Value = driver.run(command).await?;
        let mut out = std::io::stdout().lock();
        writeln!(out, "{answer}")?;
        out.flush()?;
    }
    Ok(())
}
