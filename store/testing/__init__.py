"""The kit for people who write another backend: conformance suite, fault injection, state machine."""
