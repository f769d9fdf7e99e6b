//! How controllers and queues are opened.

use std::time::Duration;

use crate::block::BlockRange;

/// How a controller is opened.
#[derive(Debug, Clone, Copy)]
pub struct SpdkControllerOptions {
    /// Time for the controller to come up, at first and after each reset or reconnection.
    pub connect_timeout: Duration,
    /// Time after which a controller that does not come back is gone.
    pub loss_timeout: Duration,
    /// Between two signs of life (fabrics).
    pub keep_alive: Duration,
}

impl Default for SpdkControllerOptions {
    fn default() -> Self {
        Self {
            connect_timeout: Duration::from_secs(15),
            loss_timeout: Duration::from_secs(60),
            keep_alive: Duration::from_secs(10),
        }
    }
}

/// How a queue is made.
#[derive(Debug, Clone, Copy)]
pub struct SpdkQueueOptions {
    /// Chains outstanding at once.
    pub depth: usize,
    /// Most segments of a chain.
    pub max_segments: usize,
    /// Time after which a command counts as lost.
    pub timeout: Duration,
    /// How often a chain is sent again after a reset or a lost connection.
    pub retries: u32,
    /// Writes are refused.
    pub read_only: bool,
    /// The blocks that the queue may access.
    pub range: BlockRange,
}

impl Default for SpdkQueueOptions {
    fn default() -> Self {
        Self {
            depth: 128,
            max_segments: 8,
            timeout: Duration::from_secs(30),
            retries: 16,
            read_only: false,
            range: BlockRange::WHOLE,
        }
    }
}
