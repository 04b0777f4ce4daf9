"""State that several instances share on Redis or PostgreSQL: breakers, rate limits, retry budgets and budgets."""
