//! CRD types, status reasons and validation of Sheave (group `sheave.dev`).
