//! The names of the files that belong to a data file.

use std::path::{Path, PathBuf};

/// The file beside `path` whose name goes on with `suffix`: `Data.fs` and `.lock` give
/// `Data.fs.lock`.
pub fn beside(path: &Path, suffix: &str) -> PathBuf {
    let mut name = path.as_os_str().to_owned();
    name.push(suffix);
    name.into()
}

/// The folder that a file is in; empty for the one that the process is in.
pub fn folder(path: &Path) -> &Path {
    path.parent().unwrap_or(Path::new(""))
}
