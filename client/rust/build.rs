//! Generates the contract's messages and stubs from `protos`, without `protoc`.

use std::collections::HashMap;
use std::error::Error;
use std::fmt::Write as _;
use std::path::{Path, PathBuf};
use std::{env, fs};

use prost::Message as _;
use prost_types::{FileDescriptorProto, FileDescriptorSet};

const INCLUDES: [&str; 2] = ["protos", "protos/third_party"];
/// Rules that the server checks. Users need neither them nor what they are written in.
const RULES: &str = "buf/validate/validate.proto";
/// The methods of `ModelService` that leave the store as it is.
const SAFE: [&str; 5] = ["GetModel", "ListModels", "ListRunners", "LoadModel", "UnloadModel"];

fn main() -> Result<(), Box<dyn Error>> {
    println!("cargo::rerun-if-changed=build.rs");
    println!("cargo::rerun-if-changed=protos");
    let mut files: Vec<PathBuf> = vec![
        "protos/third_party/google/rpc/error_details.proto".into(),
        "protos/third_party/google/rpc/status.proto".into(),
        "protos/third_party/grpc/health/v1/health.proto".into(),
    ];
    files.extend(contract()?);

    let mut compiler = protox::Compiler::new(INCLUDES)?;
    compiler.include_imports(true).include_source_info(true).open_files(&files)?;
    // These descriptors have no options of extensions, and so nothing of the rules but the import.
    let mut descriptors = compiler.file_descriptor_set();
    descriptors.file.retain(|file| file.name() != RULES);
    for file in &mut descriptors.file {
        file.dependency.retain(|name| name != RULES);
        if file.package() == "google.rpc" {
            file.source_code_info = None; // Its comments have what looks like code.
        }
    }

    let out = PathBuf::from(env::var("OUT_DIR")?);
    fs::write(out.join("methods.rs"), methods(&descriptors)?)?;
    let mut plain = descriptors.clone();
    plain.file.iter_mut().for_each(|file| file.source_code_info = None);
    fs::write(out.join("headrace.binpb"), plain.encode_to_vec())?;
    tonic_prost_build::configure()
        .build_server(false)
        .build_transport(false)
        .bytes(".")
        .btree_map(".")
        .compile_fds(descriptors)?;
    Ok(())
}

/// The files of the contract itself, in an order that is the same everywhere.
fn contract() -> std::io::Result<Vec<PathBuf>> {
    let mut files = Vec::new();
    for entry in fs::read_dir("protos/headrace/v1")? {
        let path = entry?.path();
        if path.extension() == Some("proto".as_ref()) {
            files.push(path);
        }
    }
    files.sort();
    assert!(!files.is_empty(), "{} has no contract", Path::new("protos").display());
    Ok(files)
}

/// What the channel has to know of each method: whether it may be called again, and where the request
/// names its model.
fn methods(descriptors: &FileDescriptorSet) -> Result<String, Box<dyn Error>> {
    let models: HashMap<String, i32> = descriptors.file.iter().flat_map(models).collect();
    let mut rows = Vec::new();
    for file in &descriptors.file {
        for service in &file.service {
            for method in &service.method {
                if method.client_streaming() {
                    return Err(format!("{} streams its requests", method.name()).into());
                }
                let path = format!("/{}.{}/{}", file.package(), service.name(), method.name());
                let model = models.get(method.input_type());
                let again = !method.server_streaming()
                    && (service.name() != "ModelService" || SAFE.contains(&method.name()));
                rows.push(format!("Method {{ path: {path:?}, again: {again}, model: {model:?} }}"));
            }
        }
    }
    rows.sort();
    let mut code = String::from("const METHODS: &[Method] = &[\n");
    for row in rows {
        writeln!(code, "    {row},")?;
    }
    code.push_str("];\n");
    Ok(code)
}

/// The number of the field `model` in each message that has one.
fn models(file: &FileDescriptorProto) -> impl Iterator<Item = (String, i32)> + '_ {
    file.message_type.iter().filter_map(|message| {
        let field = message.field.iter().find(|field| field.name() == "model")?;
        Some((format!(".{}.{}", file.package(), message.name()), field.number()))
    })
}
