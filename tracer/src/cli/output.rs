//! `-o text|json` and `--color`, the same for every command that prints.

use crate::model::Output;
use crate::sinks::text::Paint;
use crate::sinks::{json, text};
use clap::ValueEnum;
use std::io::IsTerminal;

#[derive(Clone, Copy, Debug, PartialEq, Eq, ValueEnum)]
pub(super) enum Format {
    Text,
    Json,
}

#[derive(Clone, Copy, Debug, PartialEq, Eq, ValueEnum)]
pub(super) enum Color {
    Auto,
    Always,
    Never,
}

#[derive(Clone, Copy, Debug, clap::Args)]
pub(super) struct OutputArgs {
    /// How to print: blocks for people, or one JSON object a line
    #[arg(short, long, value_enum, default_value = "text", value_name = "FORMAT")]
    pub(super) output: Format,
    /// Colours in text; auto: on a terminal, unless NO_COLOR is set
    #[arg(long, value_enum, default_value = "auto", value_name = "WHEN")]
    color: Color,
}

impl OutputArgs {
    pub(super) fn json(&self) -> bool {
        self.output == Format::Json
    }

    pub(super) fn paint(&self) -> Paint {
        let on = match self.color {
            Color::Always => true,
            Color::Never => false,
            // https://no-color.org: set and not empty.
            Color::Auto => {
                std::io::stdout().is_terminal() && std::env::var_os("NO_COLOR").is_none_or(|value| value.is_empty())
            }
        };
        Paint { on }
    }

    /// An incident or a stop as it is printed, without the last line end.
    pub(super) fn render(&self, output: &Output, paint: Paint) -> anyhow::Result<String> {
        if self.json() {
            return Ok(json::output(output)?);
        }
        let mut block = text::output(output, paint);
        block.pop();
        Ok(block)
    }
}
