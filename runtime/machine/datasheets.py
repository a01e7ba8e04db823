"""Figures of data sheets: cards, Apple's chips, kinds of memory; and what one core computes.

Memory is that of the reference design. The rate of batches is FP16 with FP32 sums on the matrix
units, as the makers give it without sparsity; where llama.cpp has no use for such units, or there
are none, it is that of the shaders (FP32 for NVIDIA's GTX, whose FP16 is crippled).
"""

# name, memory (GiB), bandwidth (GB/s), PCIe generation and lanes, FP16 TFLOP/s, description
DESKTOP = """
gtx-1060            6  192   3 16   4.4  NVIDIA GeForce GTX 1060 6 GB
gtx-1070            8  256   3 16   6.5  NVIDIA GeForce GTX 1070
gtx-1080            8  320   3 16   8.9  NVIDIA GeForce GTX 1080
gtx-1080-ti        11  484   3 16  11.3  NVIDIA GeForce GTX 1080 Ti
gtx-1660            6  192   3 16   5.0  NVIDIA GeForce GTX 1660
gtx-1660-super      6  336   3 16   5.0  NVIDIA GeForce GTX 1660 SUPER
gtx-1660-ti         6  288   3 16   5.4  NVIDIA GeForce GTX 1660 Ti
rtx-2060            6  336   3 16  25.8  NVIDIA GeForce RTX 2060
rtx-2060-super      8  448   3 16  28.7  NVIDIA GeForce RTX 2060 SUPER
rtx-2070            8  448   3 16  29.9  NVIDIA GeForce RTX 2070
rtx-2070-super      8  448   3 16  36.3  NVIDIA GeForce RTX 2070 SUPER
rtx-2080            8  448   3 16  40.3  NVIDIA GeForce RTX 2080
rtx-2080-super      8  496   3 16  44.6  NVIDIA GeForce RTX 2080 SUPER
rtx-2080-ti        11  616   3 16  53.8  NVIDIA GeForce RTX 2080 Ti
rtx-3050            8  224   4  8  18.2  NVIDIA GeForce RTX 3050
rtx-3060           12  360   4 16  25.5  NVIDIA GeForce RTX 3060
rtx-3060-ti         8  448   4 16  32.4  NVIDIA GeForce RTX 3060 Ti
rtx-3070            8  448   4 16  40.6  NVIDIA GeForce RTX 3070
rtx-3070-ti         8  608   4 16  43.5  NVIDIA GeForce RTX 3070 Ti
rtx-3080           10  760   4 16  59.5  NVIDIA GeForce RTX 3080
rtx-3080-12gb      12  912   4 16  61.3  NVIDIA GeForce RTX 3080 12 GB
rtx-3080-ti        12  912   4 16  68.2  NVIDIA GeForce RTX 3080 Ti
rtx-3090           24  936   4 16  71.2  NVIDIA GeForce RTX 3090
rtx-3090-ti        24 1008   4 16  80.0  NVIDIA GeForce RTX 3090 Ti
rtx-4060            8  272   4  8  30.2  NVIDIA GeForce RTX 4060
rtx-4060-ti         8  288   4  8  44.1  NVIDIA GeForce RTX 4060 Ti
rtx-4060-ti-16gb   16  288   4  8  44.1  NVIDIA GeForce RTX 4060 Ti 16 GB
rtx-4070           12  504   4 16  58.3  NVIDIA GeForce RTX 4070
rtx-4070-super     12  504   4 16  70.9  NVIDIA GeForce RTX 4070 SUPER
rtx-4070-ti        12  504   4 16  80.2  NVIDIA GeForce RTX 4070 Ti
rtx-4070-ti-super  16  672   4 16  88.2  NVIDIA GeForce RTX 4070 Ti SUPER
rtx-4080           16  717   4 16  97.5  NVIDIA GeForce RTX 4080
rtx-4080-super     16  736   4 16 104.4  NVIDIA GeForce RTX 4080 SUPER
rtx-4090           24 1008   4 16 165.2  NVIDIA GeForce RTX 4090
rtx-5060            8  448   5  8  38.4  NVIDIA GeForce RTX 5060
rtx-5060-ti         8  448   5  8  47.4  NVIDIA GeForce RTX 5060 Ti
rtx-5060-ti-16gb   16  448   5  8  47.4  NVIDIA GeForce RTX 5060 Ti 16 GB
rtx-5070           12  672   5 16  61.7  NVIDIA GeForce RTX 5070
rtx-5070-ti        16  896   5 16  87.9  NVIDIA GeForce RTX 5070 Ti
rtx-5080           16  960   5 16 112.6  NVIDIA GeForce RTX 5080
rtx-5090           32 1792   5 16 209.5  NVIDIA GeForce RTX 5090
rx-6600             8  224   4  8  17.9  AMD Radeon RX 6600
rx-6600-xt          8  256   4  8  21.2  AMD Radeon RX 6600 XT
rx-6700-xt         12  384   4 16  26.4  AMD Radeon RX 6700 XT
rx-6800            16  512   4 16  32.3  AMD Radeon RX 6800
rx-6800-xt         16  512   4 16  41.5  AMD Radeon RX 6800 XT
rx-6900-xt         16  512   4 16  46.1  AMD Radeon RX 6900 XT
rx-7600             8  288   4  8  43.5  AMD Radeon RX 7600
rx-7600-xt         16  288   4  8  45.1  AMD Radeon RX 7600 XT
rx-7700-xt         12  432   4 16  70.3  AMD Radeon RX 7700 XT
rx-7800-xt         16  624   4 16  74.7  AMD Radeon RX 7800 XT
rx-7900-gre        16  576   4 16  92.0  AMD Radeon RX 7900 GRE
rx-7900-xt         20  800   4 16 103.0  AMD Radeon RX 7900 XT
rx-7900-xtx        24  960   4 16 123.0  AMD Radeon RX 7900 XTX
rx-9060-xt-16gb    16  320   5 16 103.0  AMD Radeon RX 9060 XT 16 GB
rx-9070            16  640   5 16 145.0  AMD Radeon RX 9070
rx-9070-xt         16  640   5 16 195.0  AMD Radeon RX 9070 XT
arc-a750            8  512   4 16  34.4  Intel Arc A750
arc-a770           16  560   4 16  39.3  Intel Arc A770
arc-b570           10  380   4  8  23.0  Intel Arc B570
arc-b580           12  456   4  8  27.3  Intel Arc B580
"""

WORKSTATION = """
tesla-p40          24  346   3 16  11.8  NVIDIA Tesla P40
tesla-t4           16  320   3 16  65.0  NVIDIA T4
v100-32gb          32  900   3 16 112.0  NVIDIA V100 PCIe 32 GB
rtx-a6000          48  768   4 16 154.8  NVIDIA RTX A6000
rtx-6000-ada       48  960   4 16 364.2  NVIDIA RTX 6000 Ada
l4                 24  300   4 16 121.0  NVIDIA L4
l40s               48  864   4 16 362.0  NVIDIA L40S
a100-40gb          40 1555   4 16 312.0  NVIDIA A100 PCIe 40 GB
a100-80gb          80 1935   4 16 312.0  NVIDIA A100 PCIe 80 GB
h100-80gb          80 2000   5 16 756.0  NVIDIA H100 PCIe 80 GB
h200              141 4800   5 16 989.0  NVIDIA H200
"""

# Apple's chips with all their graphics cores: usual memory (GiB), bandwidth (GB/s), TFLOP/s of the
# graphics, fast cores. Since the M3 Apple gives no TFLOP/s: by the number of units and their clock.
CHIPS = {
    "m1": (16, 68, 2.6, 4),
    "m1-pro": (32, 200, 5.2, 8),
    "m1-max": (64, 400, 10.4, 8),
    "m1-ultra": (128, 800, 20.8, 16),
    "m2": (16, 100, 3.6, 4),
    "m2-pro": (32, 200, 6.8, 8),
    "m2-max": (64, 400, 13.6, 8),
    "m2-ultra": (128, 800, 27.2, 16),
    "m3": (16, 100, 3.5, 4),
    "m3-pro": (36, 150, 6.4, 6),
    "m3-max": (64, 400, 14.2, 12),
    "m3-ultra": (256, 819, 28.4, 24),
    "m4": (16, 120, 4.3, 4),
    "m4-pro": (48, 273, 8.6, 10),
    "m4-max": (64, 546, 17.2, 12),
}

# Kinds of memory and their usual speeds, in million transfers a second.
HOSTS = {
    "ddr3": (1333, 1600, 1866),
    "ddr4": (2133, 2400, 2666, 2933, 3000, 3200, 3600),
    "ddr5": (4400, 4800, 5200, 5600, 6000, 6400, 6800, 7200, 8000),
    "lpddr4x": (3733, 4266),
    "lpddr5": (5500, 6400),
    "lpddr5x": (6400, 7467, 7500, 8000, 8533),
}

# GB/s of encoded weights that one core multiplies with a vector out of its own cache, by ggml type:
# what it computes, however fast the memory is. Measured with llama-cpp-python 0.3.36 on an Intel
# Xeon with AVX-512 and VNNI (family 6, model 207, 2.3 GHz nominal; built for it), the fastest of
# many runs, weights not rearranged. Cores of a desktop have a higher clock and may lack AVX-512.
CORE = {
    "iq1_s": 2.4,
    "iq1_m": 2.3,
    "iq2_xxs": 2.8,
    "iq2_xs": 2.7,
    "iq2_s": 3.7,
    "q2_k": 9.0,
    "q2_0": 0.6,
    "iq3_xxs": 3.3,
    "q3_k": 7.7,
    "iq3_s": 2.8,
    "mxfp4": 9.1,
    "iq4_xs": 9.6,
    "iq4_nl": 9.2,
    "q4_0": 10.0,
    "q4_k": 13.0,
    "q4_1": 10.2,
    "q5_0": 8.2,
    "q5_k": 11.7,
    "q5_1": 10.8,
    "q6_k": 18.5,
    "q8_0": 21.3,
    "bf16": 41.0,
    "f16": 29.0,
    "f32": 67.0,
}
# FLOP/s of the same core, products with a batch of 512: Q4_K, Q6_K and Q8_0 in equal parts.
CORE_FLOPS = 55e9
