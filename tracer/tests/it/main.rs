//! Outputs and command line: JSON against its schema, text as people see it, recordings, and the built binary.

mod browser;
mod check;
mod cli;
mod collector;
mod drops;
mod events;
mod evidence;
mod explain;
mod hooks;
mod incidents;
mod kube;
mod kubectl;
mod layers;
mod live;
mod metrics;
mod otlp;
mod page;
mod page_dom;
mod page_samples;
mod pairs;
mod recording;
mod samples;
mod samples_kube;
mod schema;
mod served;
mod text;
