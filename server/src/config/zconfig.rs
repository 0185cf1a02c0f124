//! Reads the text of a configuration, in ZConfig's syntax, as a tree of sections and keys.
//!
//! Knows lines, sections, `%define`, `%include` and `$name`; knows no section and no key by name
//! (that is [`super::schema`]) and gives no value a meaning (that is [`super::build`]). Reads the
//! files that `%include` names, and no others. A line never continues on the next one, and a `#`
//! starts a comment only at the beginning of a line.
//!
//! ```text
//! %define DATA /srv/zodb          a name for a text; names are known in lower case
//! <filestorage Main>              type and name; both are kept in lower case
//!   path $DATA/Data.fs            ${data} is the same, $(HOME) an environment variable, $$ a $
//! </filestorage>
//! <mappingstorage scratch/>       a section with nothing in it
//! ```

use std::{
    collections::HashMap,
    fs,
    path::{Path, PathBuf},
};

use super::{ConfigError, Place};

/// How deep files may include one another. More is a file that includes itself.
const INCLUDES_MAX: usize = 16;

/// How deep sections may stand in one another. The deepest that means anything is 3.
const SECTIONS_DEEP_MAX: usize = 16;

/// Asks for an environment variable.
pub type Environment<'a> = &'a dyn Fn(&str) -> Option<String>;

/// `<kind name>`, and what stands in it.
#[derive(Clone, Debug, Eq, PartialEq)]
pub struct Section {
    /// The section's type, in lower case. Empty for the whole configuration.
    pub kind: String,
    /// The section's name, in lower case.
    pub name: Option<String>,
    /// Where it starts.
    pub place: Place,
    /// Its keys, in the order of the file.
    pub entries: Vec<Entry>,
    /// The sections in it, in the order of the file.
    pub sections: Vec<Self>,
}

/// `key value`.
#[derive(Clone, Debug, Eq, PartialEq)]
pub struct Entry {
    /// The key as it is written.
    pub key: String,
    /// Its value with all `$name` replaced; may be empty.
    pub value: String,
    /// Where it stands.
    pub place: Place,
}

/// The packages whose sections this server knows, so that importing them changes nothing.
const PACKAGES: [&str; 4] = ["ZODB", "ZEO", "zdaemon", "ZConfig.components.logger"];

/// Reads `file` and everything it includes.
pub fn read(file: &Path, environment: Environment<'_>) -> Result<Section, ConfigError> {
    let text = text_of(file).map_err(ConfigError::new)?;
    parse(file, &text, environment)
}

/// Reads a text as if it stood in `file`.
pub fn parse(
    file: &Path,
    text: &str,
    environment: Environment<'_>,
) -> Result<Section, ConfigError> {
    let place = Place::Line { file: file.to_owned(), line: 1 };
    let whole = Section::new(String::new(), None, place);
    let mut reader = Reader { environment, defines: HashMap::new(), open: vec![whole] };
    reader.read_text(file, text, 0)?;
    Ok(reader.open.pop().expect("the whole configuration is closed last"))
}

fn text_of(file: &Path) -> Result<String, String> {
    let bytes = fs::read(file).map_err(|error| format!("{}: {error}", file.display()))?;
    String::from_utf8(bytes).map_err(|_| format!("{}: not a text in UTF-8", file.display()))
}

impl Section {
    fn new(kind: String, name: Option<String>, place: Place) -> Self {
        Self { kind, name, place, entries: Vec::new(), sections: Vec::new() }
    }
}

/// Invariant: `open` holds the whole configuration and then each section that is not closed yet.
struct Reader<'a> {
    environment: Environment<'a>,
    defines: HashMap<String, String>,
    open: Vec<Section>,
}

impl Reader<'_> {
    /// Reads one file. Each section it opens it has to close.
    fn read_text(&mut self, file: &Path, text: &str, depth: usize) -> Result<(), ConfigError> {
        let open_before = self.open.len();
        for (index, line) in text.lines().enumerate() {
            let place = Place::Line { file: file.to_owned(), line: index + 1 };
            self.read_line(file, line.trim(), &place, depth, open_before)?;
        }
        if open_before < self.open.len() {
            let left = self.innermost();
            let what = format!("<{}> is never closed by </{}>", left.kind, left.kind);
            return Err(ConfigError::at(&left.place, what));
        }
        Ok(())
    }

    fn read_line(
        &mut self,
        file: &Path,
        line: &str,
        place: &Place,
        depth: usize,
        open_before: usize,
    ) -> Result<(), ConfigError> {
        if line.is_empty() || line.starts_with('#') {
            Ok(())
        } else if let Some(rest) = line.strip_prefix("</") {
            self.close_section(rest, place, open_before)
        } else if let Some(rest) = line.strip_prefix('<') {
            self.open_section(rest, place)
        } else if let Some(rest) = line.strip_prefix('%') {
            self.follow_directive(file, rest, place, depth)
        } else {
            let (key, value) = split_key(line).ok_or_else(|| {
                ConfigError::at(place, format!("expected a key and a value, found {line:?}"))
            })?;
            let (key, value) = (key.to_owned(), self.substitute(value, place)?);
            self.innermost().entries.push(Entry { key, value, place: place.clone() });
            Ok(())
        }
    }

    fn innermost(&mut self) -> &mut Section {
        self.open.last_mut().expect("the whole configuration is closed last")
    }

    fn open_section(&mut self, rest: &str, place: &Place) -> Result<(), ConfigError> {
        let wrong = || ConfigError::at(place, "expected <type>, <type name> or <type name/>");
        let rest = rest.strip_suffix('>').ok_or_else(wrong)?;
        let (rest, empty) = match rest.strip_suffix('/') {
            Some(rest) => (rest, true),
            None => (rest, false),
        };
        // As in ZConfig: no space before the type, and no more than one name behind it.
        let (kind, name) = split_key(rest.trim_end()).ok_or_else(wrong)?;
        if name.contains(|c: char| c.is_whitespace() || c == '(' || c == ')') {
            return Err(wrong());
        }
        if SECTIONS_DEEP_MAX < self.open.len() {
            return Err(ConfigError::at(place, "sections stand in one another too deep"));
        }
        let name = (!name.is_empty()).then(|| name.to_lowercase());
        let section = Section::new(kind.to_lowercase(), name, place.clone());
        if empty {
            self.innermost().sections.push(section);
        } else {
            self.open.push(section);
        }
        Ok(())
    }

    fn close_section(
        &mut self,
        rest: &str,
        place: &Place,
        open_before: usize,
    ) -> Result<(), ConfigError> {
        let Some(kind) = rest.strip_suffix('>') else {
            return Err(ConfigError::at(place, "expected </type>"));
        };
        let kind = kind.trim_end().to_lowercase();
        if self.open.len() == open_before {
            return Err(ConfigError::at(place, format!("</{kind}> closes nothing")));
        }
        let section = self.open.pop().expect("more are open than before this file");
        if section.kind != kind {
            let what = format!("</{kind}> where </{}> has to come first", section.kind);
            return Err(ConfigError::at(place, what));
        }
        self.innermost().sections.push(section);
        Ok(())
    }

    fn follow_directive(
        &mut self,
        file: &Path,
        rest: &str,
        place: &Place,
        depth: usize,
    ) -> Result<(), ConfigError> {
        let (directive, argument) = split_key(rest).unwrap_or(("", ""));
        if !["define", "import", "include"].contains(&directive) {
            let what = format!("expected %define, %import or %include, found %{rest}");
            return Err(ConfigError::at(place, what));
        }
        if argument.is_empty() {
            return Err(ConfigError::at(place, format!("%{directive} of what?")));
        }
        match directive {
            "define" => self.define(argument, place),
            "import" => self.import(argument, place),
            _ => self.include(file, argument, place, depth),
        }
    }

    fn define(&mut self, argument: &str, place: &Place) -> Result<(), ConfigError> {
        let (name, value) = argument.split_once(char::is_whitespace).unwrap_or((argument, ""));
        let name = name.to_lowercase();
        if name_length(&name) != name.len() {
            let what = format!("%define {name}: a name has letters, digits and _ only");
            return Err(ConfigError::at(place, what));
        }
        let value = self.substitute(value.trim_start(), place)?;
        match self.defines.get(&name) {
            Some(before) if *before != value => {
                let what = format!("%define {name}: it is {before:?} already");
                Err(ConfigError::at(place, what))
            }
            _ => {
                self.defines.insert(name, value);
                Ok(())
            }
        }
    }

    fn import(&mut self, argument: &str, place: &Place) -> Result<(), ConfigError> {
        let package = self.substitute(argument, place)?;
        if PACKAGES.contains(&package.as_str()) {
            return Ok(());
        }
        let what = format!(
            "%import {package}: this server runs no Python; known packages: {}",
            PACKAGES.join(", ")
        );
        Err(ConfigError::at(place, what))
    }

    fn include(
        &mut self,
        file: &Path,
        argument: &str,
        place: &Place,
        depth: usize,
    ) -> Result<(), ConfigError> {
        let target = self.substitute(argument, place)?;
        let Some(target) = path_of(&target) else {
            let what = format!("%include {target}: only files can be included");
            return Err(ConfigError::at(place, what));
        };
        if depth == INCLUDES_MAX {
            return Err(ConfigError::at(place, "files include one another without end"));
        }
        let target = file.parent().unwrap_or(Path::new("")).join(target);
        let text =
            text_of(&target).map_err(|what| ConfigError::at(place, format!("%include {what}")))?;
        self.read_text(&target, &text, depth + 1)
    }

    /// Puts a text in place of each `$name`, `${name}` and `$(VARIABLE)`, and `$` for `$$`.
    fn substitute(&self, text: &str, place: &Place) -> Result<String, ConfigError> {
        let mut whole = String::with_capacity(text.len());
        let mut rest = text;
        while let Some((before, after)) = rest.split_once('$') {
            whole.push_str(before);
            if let Some(after) = after.strip_prefix('$') {
                whole.push('$');
                rest = after;
                continue;
            }
            let (inside, end) = match after.as_bytes().first() {
                Some(b'{') => (&after[1..], "}"),
                Some(b'(') => (&after[1..], ")"),
                _ => (after, ""),
            };
            let (name, behind) = inside.split_at(name_length(inside));
            let behind = behind.strip_prefix(end).filter(|_| !name.is_empty());
            rest = behind.ok_or_else(|| {
                let what = "expected $name, ${name}, $(VARIABLE) or $$ at a $";
                ConfigError::at(place, format!("{what}, found {text:?}"))
            })?;
            let value = if end == ")" {
                (self.environment)(name)
                    .ok_or_else(|| format!("the environment has no variable {name}"))
            } else {
                let defined = self.defines.get(&name.to_lowercase()).cloned();
                defined.ok_or_else(|| format!("no %define {name} before this line"))
            };
            whole.push_str(&value.map_err(|what| ConfigError::at(place, what))?);
        }
        whole.push_str(rest);
        Ok(whole)
    }
}

/// The path that a path or a `file:` URL names; `None` for any other URL.
pub fn path_of(target: &str) -> Option<PathBuf> {
    if let Some(path) = target.strip_prefix("file://") {
        return path.starts_with('/').then(|| PathBuf::from(path));
    }
    (!target.contains("://")).then(|| PathBuf::from(target))
}

/// The word at the start and what follows it; `None` if there is no word. A parenthesis ends a
/// word, as in ZConfig.
fn split_key(text: &str) -> Option<(&str, &str)> {
    let length =
        text.find(|c: char| c.is_whitespace() || c == '(' || c == ')').unwrap_or(text.len());
    (0 < length).then(|| (&text[..length], text[length..].trim_start()))
}

/// How many bytes at the start are a name for `%define`.
fn name_length(text: &str) -> usize {
    let letter = |c: char| c.is_ascii_alphabetic() || c == '_';
    if !text.starts_with(letter) {
        return 0;
    }
    text.find(|c: char| !letter(c) && !c.is_ascii_digit()).unwrap_or(text.len())
}

#[cfg(test)]
mod tests {
    use super::*;

    fn parse_text(text: &str) -> Result<Section, String> {
        let environment = |name: &str| (name == "PORT").then(|| "8100".to_owned());
        parse(Path::new("zeo.conf"), text, &environment).map_err(|error| error.to_string())
    }

    #[test]
    fn names_are_replaced_wherever_they_may_stand() {
        // (definitions, value as written, value as meant)
        let cases = [
            ("", "a  b", "a  b"),
            ("", "a # b", "a # b"),
            ("", "a $$ b", "a $ b"),
            ("", "x:$(PORT)", "x:8100"),
            ("%define A x", "$a", "x"),
            ("%define a x", "$A/${a}b", "x/xb"),
            ("%define a x\n%define b $a/y  z", "$b", "x/y  z"),
            ("%define a x\n%define A x", "$a", "x"),
            ("%define a", "<$a>", "<>"),
            ("%define a $$b", "$a", "$b"),
        ];
        for (definitions, written, meant) in cases {
            let whole = parse_text(&format!("{definitions}\nkey {written}\n"));
            assert_eq!(whole.unwrap().entries[0].value, meant, "{definitions} {written}");
        }
    }

    #[test]
    fn sections_keep_their_order_and_are_known_in_lower_case() {
        let whole = parse_text(
            "# a comment\n<Zeo>\n  Address 1\n</ZEO>\n\
             <blobstorage  Main >\n<a b/>\n</blobstorage>\n",
        );
        let whole = whole.unwrap();
        assert_eq!((whole.sections.len(), whole.sections[0].kind.as_str()), (2, "zeo"));
        assert_eq!(whole.sections[0].entries[0].key, "Address");
        assert_eq!(whole.sections[0].entries[0].place.to_string(), "zeo.conf:3");
        assert_eq!(whole.sections[1].name.as_deref(), Some("main"));
        assert_eq!(whole.sections[1].sections[0].name.as_deref(), Some("b"));
    }

    #[test]
    fn each_wrong_line_is_named() {
        let cases = [
            ("<zeo\n", "zeo.conf:1: expected <type>, <type name> or <type name/>"),
            ("< zeo>\n", "zeo.conf:1: expected <type>, <type name> or <type name/>"),
            ("<>\n", "zeo.conf:1: expected <type>, <type name> or <type name/>"),
            ("<a b c>\n", "zeo.conf:1: expected <type>, <type name> or <type name/>"),
            ("\n<zeo>\nx 1\n", "zeo.conf:2: <zeo> is never closed by </zeo>"),
            ("<zeo>\n</foo>\n", "zeo.conf:2: </foo> where </zeo> has to come first"),
            ("</zeo>\n", "zeo.conf:1: </zeo> closes nothing"),
            ("</zeo\n", "zeo.conf:1: expected </type>"),
            ("(x)\n", "zeo.conf:1: expected a key and a value, found \"(x)\""),
            ("%foo x\n", "zeo.conf:1: expected %define, %import or %include, found %foo x"),
            ("%define\n", "zeo.conf:1: %define of what?"),
            ("%define a-b c\n", "zeo.conf:1: %define a-b: a name has letters, digits and _ only"),
            ("%define a b\n%define A c\n", "zeo.conf:2: %define a: it is \"b\" already"),
            ("\na $b\n", "zeo.conf:2: no %define b before this line"),
            ("a $(NO)\n", "zeo.conf:1: the environment has no variable NO"),
            (
                "a b$\n",
                "zeo.conf:1: expected $name, ${name}, $(VARIABLE) or $$ at a $, found \"b$\"",
            ),
            (
                "a ${b\n",
                "zeo.conf:1: expected $name, ${name}, $(VARIABLE) or $$ at a $, found \"${b\"",
            ),
            (
                "%import relstorage\n",
                "zeo.conf:1: %import relstorage: this server runs no Python; known packages: \
                 ZODB, ZEO, zdaemon, ZConfig.components.logger",
            ),
            (
                "%include http://x/y\n",
                "zeo.conf:1: %include http://x/y: only files can be included",
            ),
            (
                "%include /nowhere/x\n",
                "zeo.conf:1: %include /nowhere/x: No such file or directory (os error 2)",
            ),
        ];
        for (text, message) in cases {
            assert_eq!(parse_text(text).unwrap_err(), message, "{text}");
        }
    }

    #[test]
    fn an_included_file_stands_where_it_is_included() {
        let folder = tempfile::tempdir().unwrap();
        let (main, part) = (folder.path().join("zeo.conf"), folder.path().join("part.conf"));
        fs::write(&main, "%define a 1\n<zeo>\n%include part.conf\n</zeo>\nlast $b\n").unwrap();
        fs::write(&part, "%define b 2\naddress $a\n").unwrap();
        let whole = read(&main, &|_| None).unwrap();
        assert_eq!(whole.sections[0].entries[0].value, "1");
        assert_eq!(whole.sections[0].entries[0].place, Place::Line { file: part.clone(), line: 2 });
        assert_eq!(whole.entries[0].value, "2");

        fs::write(&part, "</zeo>\n").unwrap();
        let error = read(&main, &|_| None).unwrap_err().to_string();
        assert_eq!(error, format!("{}:1: </zeo> closes nothing", part.display()));

        fs::write(&part, "%include part.conf\n").unwrap();
        let error = read(&main, &|_| None).unwrap_err().to_string();
        let expected = format!("{}:1: files include one another without end", part.display());
        assert_eq!(error, expected);
    }

    #[test]
    fn any_text_gives_a_tree_or_an_error() {
        let words = ["<", "</", ">", "/", "zeo", " ", "\n", "%define a", "$", "{", "(", "\u{e9}"];
        for seed in 0..20_000_usize {
            let mut left = seed * 0x9e37 + seed;
            let mut text = String::new();
            while left != 0 {
                text.push_str(words[left % words.len()]);
                left /= words.len();
            }
            let _ = parse_text(&text);
        }
    }
}
