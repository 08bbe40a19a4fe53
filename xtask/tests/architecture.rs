//! The shape of the tree, held by tests: which crate may know which, what pure code may not touch, where
//! `unsafe` may stand, and how long a file may be (ARCHITECTURE.md, invariants; STYLE.md).

use serde_json::Value;
use std::collections::{BTreeMap, BTreeSet};
use std::path::{Path, PathBuf};
use syn::visit::{self, Visit};

/// Who may depend on whom, tests aside. `cli` and `xtask` may know everybody.
const ARROWS: &[(&str, &[&str])] = &[
    ("base", &[]),
    ("ops", &["base"]),
    ("model", &["base", "ops"]),
    ("data", &["base"]),
    ("federation", &["base"]),
    ("methods", &["base", "ops", "model", "data", "federation"]),
    ("sim", &["base", "federation"]),
    ("net", &["base", "federation"]),
    ("report", &["base", "federation"]),
];

/// Crates that never see a tensor, directly or through others.
const TENSORLESS: &[&str] = &["base", "data", "federation", "sim", "net", "report"];

/// What pure code never names: clocks, files, networks, threads, processes, shared or global state,
/// generators, and collections whose order differs from run to run.
const IMPURE_NAMES: &[&str] = &[
    "Instant",
    "SystemTime",
    "HashMap",
    "HashSet",
    "Mutex",
    "RwLock",
    "Condvar",
    "OnceLock",
    "LazyLock",
    "OnceCell",
    "Cell",
    "RefCell",
    "UnsafeCell",
    "thread_rng",
    "ThreadRng",
    "OsRng",
];
const IMPURE_MODULES: &[&str] = &[
    "std::fs",
    "std::net",
    "std::thread",
    "std::env",
    "std::process",
    "std::io",
    "std::os",
    "std::sync::atomic",
    "std::sync::mpsc",
    "core::sync::atomic",
    "rand",
    "rand_chacha",
    "rayon",
    "tokio",
];
const IMPURE_MACROS: &[&str] = &["println", "print", "eprintln", "eprint", "dbg", "thread_local", "env"];

const FILE_LIMIT: usize = 600;

fn root() -> PathBuf {
    Path::new(env!("CARGO_MANIFEST_DIR")).parent().expect("xtask stands in the workspace").to_owned()
}

/// Every Rust file below a folder of the workspace, by its path from the root.
fn sources(folder: &str) -> BTreeMap<String, String> {
    let walk = walkdir::WalkDir::new(root().join(folder)).into_iter().map(|entry| entry.expect("a folder"));
    let rust = walk.filter(|entry| entry.path().extension().is_some_and(|ext| ext == "rs"));
    let read = |entry: walkdir::DirEntry| {
        let text = std::fs::read_to_string(entry.path()).expect("a source file");
        let path = entry.path().strip_prefix(root()).expect("below the root").display().to_string();
        (path, text)
    };
    rust.map(read).collect()
}

fn parse(path: &str, text: &str) -> syn::File {
    syn::parse_file(text).unwrap_or_else(|error| panic!("{path}: {error}"))
}

/// The workspace's packages, as cargo itself reads the manifests. Its JSON is read as it is: the crate
/// with the types switches on a feature of `serde_json`, and tests would then build every heavy
/// dependency a second time.
fn packages() -> Vec<Value> {
    let manifest = root().join("Cargo.toml");
    let mut cargo = std::process::Command::new(env!("CARGO"));
    cargo
        .args(["metadata", "--format-version=1", "--no-deps", "--offline", "--manifest-path"])
        .arg(manifest);
    let output = cargo.output().expect("cargo runs");
    assert!(output.status.success(), "cargo metadata: {}", String::from_utf8_lossy(&output.stderr));
    let metadata: Value = serde_json::from_slice(&output.stdout).expect("cargo's JSON");
    metadata["packages"].as_array().expect("the packages").clone()
}

#[test]
fn crates_know_only_whom_they_may() {
    let packages = packages();
    let short = |named: &Value| {
        let name = named["name"].as_str().expect("a package's name");
        name.strip_prefix("undertone-").unwrap_or(name).to_owned()
    };
    let ours: BTreeSet<String> = packages.iter().map(short).collect();
    let mut seen = BTreeSet::new();
    for package in &packages {
        let name = short(package);
        let Some((_, allowed)) = ARROWS.iter().find(|(from, _)| *from == name) else {
            assert!(["undertone", "cli", "xtask"].contains(&name.as_str()), "{name}: give it arrows");
            continue;
        };
        seen.insert(name.clone());
        for dependency in package["dependencies"].as_array().expect("a package's dependencies") {
            let to = short(dependency);
            let tests_only = dependency["kind"] == "dev";
            let legal = tests_only || !ours.contains(&to) || allowed.contains(&to.as_str());
            assert!(legal, "{name} may not depend on {to}");
            let tensors = ["candle-core", "gemm", "safetensors", "ops", "model"].contains(&to.as_str());
            assert!(!(tensors && TENSORLESS.contains(&name.as_str())), "{name} sees tensors through {to}");
        }
    }
    assert_eq!(seen.len(), ARROWS.len(), "arrows of a crate that is not there");
}

#[test]
fn the_narrow_waist_is_pure() {
    let mut faults = Vec::new();
    for (path, text) in sources("crates/federation/src") {
        let mut purity = Purity::new(&path);
        purity.visit_file(&parse(&path, &text));
        faults.extend(purity.faults);
    }
    assert!(faults.is_empty(), "\n{}", faults.join("\n"));
}

#[test]
fn every_half_of_a_method_is_pure_outside_its_jobs() {
    let (mut faults, mut halves, mut written) = (Vec::new(), 0, 0);
    for (path, text) in sources("crates/methods/src") {
        let file = parse(&path, &text);
        let impls: Vec<&syn::ItemImpl> = file.items.iter().filter_map(as_impl).collect();
        let sides: Vec<String> = impls.iter().filter(|item| implements_side(item)).map(self_type).collect();
        halves += sides.len();
        written += text.matches("impl Side for").count();
        let mut purity = Purity::new(&path).refusing_kernels(&file);
        for item in impls.iter().filter(|item| sides.contains(&self_type(item))) {
            for member in &item.items {
                match member {
                    // `run` is where computing belongs; another trait's methods are no part of the half.
                    syn::ImplItem::Fn(function) if implements_side(item) && function.sig.ident != "run" => {
                        purity.visit_impl_item_fn(function);
                    }
                    syn::ImplItem::Fn(function) if item.trait_.is_none() => {
                        purity.visit_impl_item_fn(function);
                    }
                    _ => {}
                }
            }
        }
        faults.extend(purity.faults);
    }
    assert!(faults.is_empty(), "\n{}", faults.join("\n"));
    assert_eq!(halves, written, "not every half was looked at");
}

#[test]
fn settings_are_read_from_nowhere_below_cli() {
    let mut faults = Vec::new();
    for (name, _) in ARROWS.iter().filter(|(name, _)| *name != "net") {
        for (path, text) in sources(&format!("crates/{name}/src")) {
            let mut purity = Purity::new(&path);
            (purity.modules, purity.names, purity.macros) = (vec!["std::env"], Vec::new(), &["option_env"]);
            purity.visit_file(&parse(&path, &text));
            faults.extend(purity.faults);
        }
    }
    assert!(faults.is_empty(), "\n{}", faults.join("\n"));
}

#[test]
fn unsafe_stands_only_in_kernels() {
    // The allocator that counts the process's memory cannot be written without.
    const ALLOWED: &[&str] = &["crates/ops/", "crates/cli/src/memory.rs"];
    for (path, text) in sources("crates") {
        let mut search = Unsafe(0);
        search.visit_file(&parse(&path, &text));
        let allowed = ALLOWED.iter().any(|prefix| path.starts_with(prefix));
        assert!(search.0 == 0 || allowed, "{path}: {} unsafe blocks or functions", search.0);
        let explained = text.matches("// SAFETY:").count() + text.matches("# Safety").count();
        assert!(search.0 == 0 || explained > 0, "{path}: unsafe without a word on why it is sound");
    }
}

#[test]
fn a_file_is_a_concept_and_not_a_heap() {
    for (path, text) in sources("crates").into_iter().chain(sources("xtask")) {
        let lines = text.lines().count();
        assert!(lines <= FILE_LIMIT, "{path} has {lines} lines; {FILE_LIMIT} are enough for one concept");
    }
}

/// The checks find what they look for.
#[test]
fn the_checks_have_teeth() {
    let faults_of = |text: &str| {
        let mut purity = Purity::new("it");
        purity.visit_file(&syn::parse_file(text).expect("a snippet"));
        purity.faults.len()
    };
    assert_eq!(faults_of("use std::time::Duration; fn f() -> Duration { Duration::ZERO }"), 0);
    assert_eq!(faults_of("#[cfg(test)] mod tests { use std::fs; }"), 0);
    for impure in [
        "use std::time::{Duration, Instant};",
        "use std::{fs, fmt};",
        "use std::collections::HashMap as Map;",
        "fn f() { std::thread::sleep(d) }",
        "fn f() { println!(\"x\") }",
        "static X: std::sync::Mutex<u32> = std::sync::Mutex::new(0);",
        "fn f() { let x: std::cell::RefCell<u8>; }",
        "fn f() { g(std::env::var(\"X\")) }",
        "fn f() { matches!(std::fs::read(p), Ok(_)) }",
    ] {
        assert!(faults_of(impure) > 0, "{impure}");
    }
}

fn as_impl(item: &syn::Item) -> Option<&syn::ItemImpl> {
    if let syn::Item::Impl(item) = item { Some(item) } else { None }
}

fn implements_side(item: &syn::ItemImpl) -> bool {
    let last = item.trait_.as_ref().and_then(|(_, path, _)| path.segments.last());
    last.is_some_and(|segment| segment.ident == "Side")
}

fn self_type(item: &&syn::ItemImpl) -> String {
    match &*item.self_ty {
        syn::Type::Path(path) => path.path.segments.last().expect("a type has a name").ident.to_string(),
        other => format!("{other:?}"),
    }
}

fn is_for_tests(attributes: &[syn::Attribute]) -> bool {
    attributes.iter().any(|attribute| {
        attribute.path().is_ident("cfg")
            && attribute.parse_args::<syn::Path>().is_ok_and(|path| path.is_ident("test"))
    })
}

/// Collects what impure code is named in a piece of source, tests aside.
struct Purity {
    file: String,
    names: Vec<String>,
    modules: Vec<&'static str>,
    macros: &'static [&'static str],
    faults: Vec<String>,
}

impl Purity {
    fn new(file: &str) -> Purity {
        Purity {
            file: file.to_owned(),
            names: IMPURE_NAMES.iter().map(|name| (*name).to_owned()).collect(),
            modules: IMPURE_MODULES.to_vec(),
            macros: IMPURE_MACROS,
            faults: Vec::new(),
        }
    }

    /// Also refuse to compute: the crate of kernels, and what a file imports from it.
    fn refusing_kernels(mut self, file: &syn::File) -> Purity {
        self.modules.push("ops");
        for item in &file.items {
            if let syn::Item::Use(item) = item {
                let imported = imports(&item.tree).into_iter();
                let kernels = imported.filter(|path| path.first().is_some_and(|first| first == "ops"));
                self.names.extend(kernels.filter_map(|path| path.last().cloned()));
            }
        }
        self
    }

    fn check(&mut self, segments: &[String]) {
        let path = segments.join("::");
        let named = segments.iter().find(|segment| self.names.contains(segment));
        let inside = |module: &&&'static str| path == **module || path.starts_with(&format!("{module}::"));
        if named.is_some() || self.modules.iter().any(|module| inside(&module)) {
            self.faults.push(format!("{}: {path}", self.file));
        }
    }
}

impl<'ast> Visit<'ast> for Purity {
    fn visit_item_mod(&mut self, item: &'ast syn::ItemMod) {
        if !is_for_tests(&item.attrs) {
            visit::visit_item_mod(self, item);
        }
    }

    fn visit_item_use(&mut self, item: &'ast syn::ItemUse) {
        for path in imports(&item.tree) {
            self.check(&path);
        }
    }

    fn visit_path(&mut self, path: &'ast syn::Path) {
        let segments: Vec<String> = path.segments.iter().map(|segment| segment.ident.to_string()).collect();
        self.check(&segments);
        visit::visit_path(self, path);
    }

    fn visit_macro(&mut self, invocation: &'ast syn::Macro) {
        let name = invocation.path.segments.last().map(|segment| segment.ident.to_string());
        if name.as_ref().is_some_and(|name| self.macros.contains(&name.as_str())) {
            self.faults.push(format!("{}: {}!", self.file, name.unwrap_or_default()));
        }
        // What a macro is given is only text; most macros are given expressions.
        let text: String = invocation.tokens.to_string().split_whitespace().collect();
        let words: Vec<String> =
            text.split(|c: char| !(c.is_alphanumeric() || "_:".contains(c))).map(str::to_owned).collect();
        for word in words {
            self.check(&word.split("::").map(str::to_owned).collect::<Vec<_>>());
        }
    }
}

/// The full paths a `use` brings in.
fn imports(tree: &syn::UseTree) -> Vec<Vec<String>> {
    match tree {
        syn::UseTree::Path(path) => {
            let below = imports(&path.tree).into_iter();
            below.map(|rest| [vec![path.ident.to_string()], rest].concat()).collect()
        }
        syn::UseTree::Name(name) => vec![vec![name.ident.to_string()]],
        syn::UseTree::Rename(rename) => vec![vec![rename.ident.to_string()]],
        syn::UseTree::Glob(_) => vec![vec!["*".to_owned()]],
        syn::UseTree::Group(group) => group.items.iter().flat_map(imports).collect(),
    }
}

/// Counts unsafe blocks, functions, impls and traits.
struct Unsafe(usize);

impl<'ast> Visit<'ast> for Unsafe {
    fn visit_expr_unsafe(&mut self, block: &'ast syn::ExprUnsafe) {
        self.0 += 1;
        visit::visit_expr_unsafe(self, block);
    }

    fn visit_signature(&mut self, signature: &'ast syn::Signature) {
        self.0 += usize::from(signature.unsafety.is_some());
        visit::visit_signature(self, signature);
    }

    fn visit_item_impl(&mut self, item: &'ast syn::ItemImpl) {
        self.0 += usize::from(item.unsafety.is_some());
        visit::visit_item_impl(self, item);
    }
}
