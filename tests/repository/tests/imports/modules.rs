//! The modules of a crate, and the imports between them.

use std::collections::{BTreeMap, BTreeSet};
use std::fs;
use std::path::{Path, PathBuf};

use crate::lexer::{Token, tokens};

/// Keywords that precede an item's name.
const ITEMS: [&str; 9] =
    ["fn", "struct", "enum", "union", "trait", "const", "static", "type", "macro_rules"];

type Names = Vec<String>;

#[derive(Default, Debug)]
struct Module {
    /// Names of the items that it defines.
    items: BTreeSet<String>,
    /// Its imports: local name, path.
    imports: BTreeMap<String, Names>,
    /// Paths from which it imports everything.
    globs: Vec<Names>,
    /// Every path that it uses.
    named: BTreeSet<Names>,
    /// Names that it only re-exports (`pub use`), until its own code uses them.
    passed_on: BTreeMap<String, Names>,
    /// It has no file of its own.
    is_inline: bool,
}

/// The name of a folder's own file among its children.
pub(crate) const OWN: &str = "mod.rs";

/// A crate's modules by their paths; the root's is empty.
#[derive(Default, Debug)]
pub(crate) struct Modules(BTreeMap<Names, Module>);

/// Siblings that import each other, by their folder: `a` imports `b`, with one path as example.
pub(crate) type Edges = BTreeMap<(String, String), String>;

impl Modules {
    /// Reads a crate from its root file.
    pub(crate) fn read(root: &Path) -> Self {
        let mut modules = Self::default();
        let folder = root.parent().expect("a file is in a folder");
        modules.file(root, folder, Vec::new());
        modules
    }

    fn file(&mut self, file: &Path, folder: &Path, path: Names) {
        let text = fs::read_to_string(file).unwrap_or_else(|e| panic!("{}: {e}", file.display()));
        self.module(&tokens(&text), folder, path);
    }

    fn module(&mut self, tokens: &[Token], folder: &Path, path: Names) {
        self.0.entry(path.clone()).or_default();
        let mut at = 0;
        while at < tokens.len() {
            let word = tokens[at].word().unwrap_or_default();
            let next = tokens.get(at + 1).and_then(Token::word);
            match (word, next) {
                ("mod", Some(name)) => {
                    let child = [&path[..], &[name.to_owned()]].concat();
                    if tokens.get(at + 2).is_some_and(|token| token.is('{')) {
                        let end = at + 2 + block(&tokens[at + 2..]);
                        self.module(&tokens[at + 3..end - 1], &folder.join(name), child.clone());
                        self.of(&child).is_inline = true;
                        at = end;
                        continue;
                    }
                    // A second copy of a file for a model checker has a path of its own.
                    if !is_elsewhere(&tokens[..at]) {
                        let (file, folder) = place(folder, name);
                        self.file(&file, &folder, child);
                    }
                    at += 2;
                }
                ("use", _) => {
                    let is_public = is_public(&tokens[..at]);
                    at += 1 + self.import(&tokens[at + 1..], &path, is_public);
                }
                // A visibility such as `pub(in crate::a)` is not an import.
                ("pub", None) if tokens.get(at + 2).and_then(Token::word) == Some("in") => {
                    let end = tokens[at..].iter().position(|token| token.is(')'));
                    at += end.unwrap_or(0) + 1;
                }
                ("crate" | "super" | "self", _) => at += self.path(&tokens[at..], &path),
                (word, _)
                    if tokens.get(at + 1) == Some(&Token::PathSep)
                        && self.0.contains_key(&[&path[..], &[word.to_owned()]].concat()) =>
                {
                    at += self.path_of_child(&tokens[at..], &path);
                }
                (word, Some(name)) if ITEMS.contains(&word) => {
                    self.of(&path).items.insert(name.to_owned());
                    at += 2;
                }
                ("macro_rules", None) => {
                    let name = tokens.get(at + 2).and_then(Token::word).unwrap_or_default();
                    self.of(&path).items.insert(name.to_owned());
                    at += 3;
                }
                (word, _) => {
                    let module = self.of(&path);
                    if let Some(home) = module.passed_on.remove(word) {
                        module.named.insert(home);
                    }
                    at += 1;
                }
            }
        }
    }

    fn of(&mut self, path: &[String]) -> &mut Module {
        self.0.get_mut(path).expect("it is being read")
    }

    /// Reads a path in the code that begins with `crate`, `super` or `self`. Returns its number of
    /// tokens.
    fn path(&mut self, tokens: &[Token], module: &[String]) -> usize {
        let mut names = Vec::new();
        let mut at = 0;
        while let Some(name) = tokens.get(at).and_then(Token::word) {
            names.push(name.to_owned());
            at += 1;
            match tokens.get(at) {
                Some(Token::PathSep) => at += 1,
                _ => break,
            }
        }
        if names.len() > 1
            && let Some(path) = absolute(&names, module)
        {
            self.of(module).named.insert(path);
        }
        at.max(1)
    }

    /// Reads a path in the code that begins with a child. Returns its number of tokens.
    fn path_of_child(&mut self, tokens: &[Token], module: &[String]) -> usize {
        let words = tokens.iter().step_by(2).map_while(Token::word);
        let seps = tokens.iter().skip(1).step_by(2).take_while(|t| **t == Token::PathSep).count();
        let names: Names = words.take(seps + 1).map(str::to_owned).collect();
        let path = [module, &names].concat();
        self.of(module).named.insert(path);
        2 * names.len() - 1
    }

    /// Reads the tree after `use`. Returns its number of tokens.
    fn import(&mut self, tokens: &[Token], module: &[String], is_public: bool) -> usize {
        let end = tokens.iter().position(|token| token.is(';')).unwrap_or(tokens.len());
        self.tree(&tokens[..end], &[], module, is_public);
        end
    }

    fn tree(&mut self, tokens: &[Token], before: &[String], module: &[String], is_public: bool) {
        let mut names = before.to_vec();
        let mut at = 0;
        while at < tokens.len() {
            match &tokens[at] {
                Token::Word(word) if word == "as" => break,
                Token::Word(word) => names.push(word.clone()),
                Token::Other('*') => {
                    if let Some(path) = self.absolute(&names, module) {
                        if !is_public {
                            self.of(module).named.insert(path.clone());
                        }
                        self.of(module).globs.push(path);
                    }
                    return;
                }
                Token::Other('{') => {
                    let inside = &tokens[at + 1..at + block(&tokens[at..]) - 1];
                    for part in commas(inside) {
                        self.tree(part, &names, module, is_public);
                    }
                    return;
                }
                _ => {}
            }
            at += 1;
        }
        if names.len() > 1 && names.last().is_some_and(|name| name == "self") {
            names.pop();
        }
        let Some(path) = self.absolute(&names, module) else { return };
        let alias = tokens.get(at + 1).and_then(Token::word);
        let Some(name) = alias.map(str::to_owned).or_else(|| names.last().cloned()) else { return };
        let this = self.of(module);
        if is_public && path.starts_with(module) {
            this.passed_on.insert(name.clone(), path.clone());
        } else {
            this.named.insert(path.clone());
        }
        this.imports.insert(name, path);
    }

    /// As [`absolute`], also for paths that begin with a module's child or item.
    fn absolute(&self, names: &[String], module: &[String]) -> Option<Names> {
        absolute(names, module).or_else(|| {
            let first = names.first()?;
            let here = [module, std::slice::from_ref(first)].concat();
            self.0.contains_key(&here).then(|| [module, names].concat())
        })
    }

    /// The module that defines the item of a path.
    fn home(&self, path: &[String], depth: usize) -> Names {
        let mut at = Names::new();
        for (n, name) in path.iter().enumerate() {
            let child = [&at[..], std::slice::from_ref(name)].concat();
            if self.0.contains_key(&child) {
                at = child;
                continue;
            }
            let module = &self.0[&at];
            if depth < 8 && !module.items.contains(name) {
                if let Some(import) = module.imports.get(name) {
                    return self.home(&[import, &path[n + 1..]].concat(), depth + 1);
                }
                for glob in &module.globs {
                    let there = self.home(glob, depth + 1);
                    let defined = self.0.get(&there).is_some_and(|m| m.items.contains(name));
                    if defined || self.0.contains_key(&[&there[..], &path[n..=n]].concat()) {
                        return self.home(&[&there, &path[n..]].concat(), depth + 1);
                    }
                }
            }
            break;
        }
        at
    }

    /// For every module with children, the imports between them.
    pub(crate) fn edges(&self) -> BTreeMap<String, Edges> {
        let mut all: BTreeMap<String, Edges> = BTreeMap::new();
        for (from, module) in &self.0 {
            for path in &module.named {
                let to = self.home(path, 0);
                let common = from.iter().zip(&to).take_while(|(a, b)| a == b).count();
                let is_inline = |at: &Names| at.len() > common && self.0[&at[..=common]].is_inline;
                if is_inline(from) || is_inline(&to) {
                    continue;
                }
                // Items of a folder's own file count as a sibling of its children.
                let own = || OWN.to_owned();
                let a = from.get(common).cloned().unwrap_or_else(own);
                let b = to.get(common).cloned().unwrap_or_else(own);
                // A crate's root names its modules only to publish them.
                if a != b && !(common == 0 && (a == OWN || b == OWN)) {
                    let edges = all.entry(from[..common].join("::")).or_default();
                    let example = format!("{} names {}", from.join("::"), path.join("::"));
                    edges.entry((a, b)).or_insert(example);
                }
            }
        }
        all
    }
}

/// Groups of modules of which each can be reached from the others.
pub(crate) fn circles(edges: &Edges) -> Vec<BTreeSet<String>> {
    let reached = |from: &String| {
        let mut seen = BTreeSet::new();
        let mut ahead = vec![from];
        while let Some(name) = ahead.pop() {
            for (_, to) in edges.keys().filter(|(a, _)| a == name) {
                if seen.insert(to.clone()) {
                    ahead.push(to);
                }
            }
        }
        seen
    };
    let names: BTreeSet<&String> = edges.keys().flat_map(|(a, b)| [a, b]).collect();
    let reach: BTreeMap<&String, BTreeSet<String>> =
        names.iter().map(|name| (*name, reached(name))).collect();
    let mut found = BTreeSet::new();
    for (name, there) in &reach {
        let circle: BTreeSet<String> =
            there.iter().filter(|other| reach[other].contains(*name)).cloned().collect();
        if circle.len() > 1 {
            found.insert(circle);
        }
    }
    found.into_iter().collect()
}

fn absolute(names: &[String], module: &[String]) -> Option<Names> {
    let mut base = match names.first()?.as_str() {
        "crate" => return Some(names[1..].to_vec()),
        "self" | "super" => module.to_vec(),
        _ => return None,
    };
    let mut rest = names;
    while let Some((first, after)) = rest.split_first() {
        match first.as_str() {
            "self" => {}
            "super" => drop(base.pop()),
            _ => break,
        }
        rest = after;
    }
    base.extend_from_slice(rest);
    Some(base)
}

/// Whether the following `use` re-exports its names.
fn is_public(before: &[Token]) -> bool {
    let is_pub = |at: usize| before[at].word() == Some("pub");
    match before.last() {
        Some(last) if last.is(')') => before
            .iter()
            .rposition(|token| token.is('('))
            .is_some_and(|at| at > 0 && is_pub(at - 1)),
        Some(_) => is_pub(before.len() - 1),
        None => false,
    }
}

/// Whether the attributes of the following module give the path of its file.
fn is_elsewhere(before: &[Token]) -> bool {
    let from = before.iter().rposition(|token| matches!(token, Token::Other(';' | '{' | '}')));
    before[from.map_or(0, |at| at + 1)..]
        .windows(2)
        .any(|pair| pair[0].is('[') && pair[1].word() == Some("path"))
}

fn place(folder: &Path, name: &str) -> (PathBuf, PathBuf) {
    let own = folder.join(name);
    let file = folder.join(format!("{name}.rs"));
    (if file.exists() { file } else { own.join("mod.rs") }, own)
}

fn block(tokens: &[Token]) -> usize {
    let mut depth = 0_usize;
    for (at, token) in tokens.iter().enumerate() {
        if token.is('{') {
            depth += 1;
        } else if token.is('}') {
            depth -= 1;
            if depth == 0 {
                return at + 1;
            }
        }
    }
    tokens.len()
}

/// Parts between commas that are not inside brackets.
fn commas(tokens: &[Token]) -> Vec<&[Token]> {
    let (mut parts, mut from, mut depth) = (Vec::new(), 0, 0_usize);
    for (at, token) in tokens.iter().enumerate() {
        match token {
            Token::Other('{') => depth += 1,
            Token::Other('}') => depth -= 1,
            Token::Other(',') if depth == 0 => {
                parts.push(&tokens[from..at]);
                from = at + 1;
            }
            _ => {}
        }
    }
    parts.push(&tokens[from..]);
    parts.retain(|part| !part.is_empty());
    parts
}
