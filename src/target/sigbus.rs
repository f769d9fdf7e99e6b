//! SIGBUS, for programs that have a handler of their own.

use crate::error::{Error, ErrorKind, Result};
use crate::sys::leave_out_handler;

/// Leaves SIGBUS to the program: the crate installs no handler. To be called before any target is
/// opened.
///
/// By default the first `pci:` or `vfio-user:` target that is opened installs a handler for the
/// whole process (other targets never do). It covers two cases, and passes all other faults to the
/// handler that was there before:
///
/// - a PCI controller is unplugged, or its memory decoding is switched off, while its registers are
///   accessed: they read as all ones, and operations end with [`ErrorKind::DeviceGone`];
/// - the process at the other end of a vfio-user socket truncates memory that is mapped here: it
///   reads as zeroes, and the connection is cut.
///
/// Without the handler such an access raises SIGBUS in the thread that makes it, and by SIGBUS's
/// default action that ends the process: anyone who can unplug the controller, or serves the
/// socket, can end the program. A program that has a handler, installed with SA_SIGINFO, keeps the
/// behaviour above by passing the `siginfo_t` on to [`handle_sigbus`](super::handle_sigbus) first,
/// and is done when that says true.
///
/// # Errors
/// [`ErrorKind::Busy`] when the handler is installed already.
pub fn leave_sigbus_to_program() -> Result<()> {
    if leave_out_handler() {
        return Ok(());
    }
    Err(Error::new(
        ErrorKind::Busy,
        "the SIGBUS handler is installed already: call this before any target is opened",
    ))
}
