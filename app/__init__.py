"""trade-stream: real-time trade streaming on Apache Kafka."""
