//! A fork is noticed by the child, and only by it.

use std::io;
use std::os::unix::process::CommandExt;
use std::process::Command;

use zeoring_shared::fork::Process;

#[test]
fn a_child_knows_that_it_is_none_of_its_parent_and_its_parent_that_it_is_itself() {
    let parent = Process::this();
    let mut command = Command::new("true");
    let look = move || match parent.was_forked() {
        true => Ok(()),
        false => Err(io::ErrorKind::Other.into()),
    };
    // SAFETY: what the child runs before the program reads one atomic number, and allocates nothing.
    unsafe { command.pre_exec(look) };
    assert!(command.status().is_ok_and(|status| status.success()));
    assert!(!parent.was_forked());
    assert_eq!(parent, Process::this());
}
