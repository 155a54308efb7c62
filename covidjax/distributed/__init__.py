"""Several processes that train one network: how they start, agree, and end together."""
