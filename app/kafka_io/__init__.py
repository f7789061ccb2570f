"""Real Kafka behind our ports; the only folder that imports aiokafka."""
