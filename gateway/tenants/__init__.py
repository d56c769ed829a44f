"""Who asks, and what they may: API keys, tenants, quotas."""
