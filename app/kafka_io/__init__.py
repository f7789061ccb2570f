"""Real Kafka behind our ports; the only folder that imports aiokafka."""

from app.kafka_io.decompression import bound_codecs

bound_codecs()  # before there is a consumer of any kind
