//! What the end-to-end tests of the tracer share.

pub(crate) use why502_tests::schema::check as check_schema;
