//! Events of the library (`tracing`), as lines on stderr: `xtent: warning: ...`.

use std::fmt::{self, Write};

use tracing::field::{Field, Visit};
use tracing::{Event, Level, Subscriber};
use tracing_subscriber::filter::{LevelFilter, Targets};
use tracing_subscriber::layer::{Context, Layer, SubscriberExt};
use tracing_subscriber::util::SubscriberInitExt;

use super::failure::{Failure, USAGE, complain};

/// Levels by target, such as `debug` or `warn,xtent::mem=debug`.
const FILTER: &str = "XTENT_LOG";
/// Set, and not to 0, everything that SPDK logs is shown.
const SPDK: &str = "XTENT_SPDK_LOG";
/// The target of what SPDK logs.
const SPDK_TARGET: &str = "xtent::spdk";

/// Shows warnings and errors from now on, or what `XTENT_LOG` asks for.
pub(super) fn install() -> Result<(), Failure> {
    let wanted = std::env::var(FILTER).ok().filter(|text| !text.is_empty());
    let mut filter = match wanted {
        Some(text) => text.parse().map_err(|error| {
            let usage = "it takes levels by target, such as debug or warn,xtent::mem=debug";
            Failure::new(USAGE, format!("{FILTER}={text}: {error}; {usage}"))
        })?,
        None => Targets::new().with_default(LevelFilter::WARN),
    };
    if std::env::var_os(SPDK).is_some_and(|value| value != "0") {
        filter = filter.with_target(SPDK_TARGET, LevelFilter::DEBUG);
    }
    let lines = Lines.with_filter(filter);
    // Only tests of the command have one already.
    let _ = tracing_subscriber::registry().with(lines).try_init();
    Ok(())
}

/// Prints a line for each event.
struct Lines;

impl<S: Subscriber> Layer<S> for Lines {
    fn on_event(&self, event: &Event<'_>, _: Context<'_, S>) {
        complain(&line(event));
    }
}

fn line(event: &Event<'_>) -> String {
    let mut text = Text::default();
    event.record(&mut text);
    let level = match *event.metadata().level() {
        Level::ERROR => "error",
        Level::WARN => "warning",
        Level::INFO => "note",
        Level::DEBUG => "debug",
        Level::TRACE => "trace",
    };
    let Text { message, fields } = text;
    match fields.is_empty() {
        true => format!("{level}: {message}"),
        false => format!("{level}: {message} ({fields})"),
    }
}

/// An event's message, and its fields as `name=value`.
#[derive(Default)]
struct Text {
    message: String,
    fields: String,
}

impl Visit for Text {
    fn record_debug(&mut self, field: &Field, value: &dyn fmt::Debug) {
        let name = field.name();
        // Writing to a string does not fail.
        let _ = match (name, self.fields.is_empty()) {
            ("message", _) => write!(self.message, "{value:?}"),
            (_, true) => write!(self.fields, "{name}={value:?}"),
            (_, false) => write!(self.fields, ", {name}={value:?}"),
        };
    }

    fn record_str(&mut self, field: &Field, value: &str) {
        self.record_debug(field, &format_args!("{value}"));
    }
}

#[cfg(test)]
mod tests {
    use std::sync::{Arc, Mutex};

    use super::*;

    struct Keep(Arc<Mutex<Vec<String>>>);

    impl<S: Subscriber> Layer<S> for Keep {
        fn on_event(&self, event: &Event<'_>, _: Context<'_, S>) {
            self.0.lock().expect("not poisoned").push(line(event));
        }
    }

    #[test]
    fn lines_have_level_message_and_fields() {
        let lines = Arc::<Mutex<Vec<String>>>::default();
        let kept = tracing_subscriber::registry().with(Keep(Arc::clone(&lines)));
        tracing::subscriber::with_default(kept, || {
            tracing::warn!(pages = 3, device = "ram:1M", "no {} left", "hugepages");
            tracing::info!("done");
        });
        assert_eq!(
            *lines.lock().expect("not poisoned"),
            [
                "warning: no hugepages left (pages=3, device=ram:1M)",
                "note: done"
            ]
        );
    }
}
