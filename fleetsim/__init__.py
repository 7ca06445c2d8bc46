"""fleetsim: a discrete-event simulator of heterogeneous LLM inference fleets."""

__version__ = "0.1.0"
