"""Events from queues of Amazon SQS."""
