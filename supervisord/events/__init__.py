"""Events: the exchange between those who publish and those who subscribe, and the door through
which shims forward theirs."""
