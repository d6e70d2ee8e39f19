"""Tests that run inside the machine; ``test_unified_host`` outside reports them."""
