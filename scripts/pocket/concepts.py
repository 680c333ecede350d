"""What the pocket model learns and never sees: everyday names and the emoji that shows each.

Objects with a clear shape that survive 8-pixel patches; no flags, letters, clocks or skin tones.
"""

from __future__ import annotations


def _parse(table: str) -> dict[str, str]:
    pairs = (entry.split(" ") for line in table.strip().splitlines() for entry in line.split("|"))
    return {name: emoji for name, emoji in pairs}


def _words(text: str) -> frozenset[str]:
    return frozenset(text.split())


_LEARNT = """
apple 🍎|banana 🍌|strawberry 🍓|cherry 🍒|carrot 🥕|mushroom 🍄|pizza 🍕|burger 🍔|cake 🎂
cup ☕|car 🚗|bus 🚌|truck 🚚|rocket 🚀|boat ⛵|house 🏠|castle 🏰|tree 🌳|cactus 🌵|flower 🌼
tulip 🌷|cat 🐈|dog 🐕|pig 🐖|elephant 🐘|panda 🐼|penguin 🐧|duck 🦆|fish 🐟|whale 🐋|turtle 🐢
frog 🐸|butterfly 🦋|heart ❤|star ⭐|sun 🌞|moon 🌙|cloud ☁|umbrella ☂|snowman ⛄|ball ⚽
balloon 🎈|gift 🎁|bell 🔔|hat 🎩|shirt 👕|book 📕|key 🔑|ghost 👻|robot 🤖|pumpkin 🎃
watermelon 🍉|pineapple 🍍|donut 🍩|train 🚂|airplane ✈|tent ⛺|crown 👑|lion 🦁|rabbit 🐇
octopus 🐙|sunflower 🌻|rainbow 🌈|cheese 🧀
"""

_UNSEEN = """
guitar 🎸|flamingo 🦩|unicorn 🦄|giraffe 🦒|bicycle 🚲|clock ⏰|camera 📷|tractor 🚜|dinosaur 🦖
dolphin 🐬|owl 🦉|parrot 🦜|zebra 🦓|fox 🦊|crab 🦀|snail 🐌|bee 🐝|spider 🕷|trophy 🏆|sword 🗡
scissors ✂|hammer 🔨|teddy 🧸|helicopter 🚁|lamp 💡|dress 👗|chair 🪑|croissant 🥐|icecream 🍦
peacock 🦚|eggplant 🍆|kangaroo 🦘
"""

_OTHER = """
orange 🍊|lemon 🍋|pear 🍐|tomato 🍅|bread 🍞|egg 🥚|cookie 🍪|taxi 🚕|ship 🚢|church ⛪|pine 🌲
palm 🌴|rose 🌹|horse 🐎|cow 🐄|sheep 🐑|tiger 🐅|bear 🐻|monkey 🐒|chicken 🐔|bird 🐦|snake 🐍
fire 🔥|shoe 👟|drum 🥁|skull 💀|mountain 🏔|island 🏝|grape 🍇|melon 🍈|mango 🥭|peach 🍑
kiwi 🥝|coconut 🥥|avocado 🥑|potato 🥔|pepper 🫑|corn 🌽|cucumber 🥒|broccoli 🥦|onion 🧅
peanut 🥜|pretzel 🥨|waffle 🧇|pancake 🥞|sandwich 🥪|taco 🌮|hotdog 🌭|fries 🍟|popcorn 🍿
sushi 🍣|pie 🥧|cupcake 🧁|candy 🍬|lollipop 🍭|chocolate 🍫|honey 🍯|teapot 🫖|bottle 🍾
milk 🥛|beer 🍺|ambulance 🚑|firetruck 🚒|scooter 🛵|motorcycle 🏍|tram 🚋|canoe 🛶|anchor ⚓
ufo 🛸|skateboard 🛹|sled 🛷|wheel 🛞|hut 🛖|factory 🏭|hospital 🏥|school 🏫|tower 🗼
fountain ⛲|volcano 🌋|wolf 🐺|deer 🦌|goat 🐐|camel 🐪|llama 🦙|rhino 🦏|hippo 🦛|mouse 🐁
hamster 🐹|hedgehog 🦔|bat 🦇|koala 🐨|gorilla 🦍|leopard 🐆|raccoon 🦝|squirrel 🐿|otter 🦦
chick 🐤|rooster 🐓|turkey 🦃|eagle 🦅|swan 🦢|crocodile 🐊|lizard 🦎|dragon 🐉|shark 🦈
pufferfish 🐡|squid 🦑|shrimp 🦐|lobster 🦞|shell 🐚|jellyfish 🪼|ladybug 🐞|ant 🐜
caterpillar 🐛|clover 🍀|leaf 🍁|blossom 🌸|hibiscus 🌺|planet 🪐|snowflake ❄|comet ☄|bolt ⚡
raindrop 💧|basketball 🏀|football 🏈|baseball ⚾|volleyball 🏐|racket 🏸|medal 🏅|target 🎯
kite 🪁|dice 🎲|puzzle 🧩|magnet 🧲|ring 💍|diamond 💎|glasses 👓|scarf 🧣|glove 🧤|coat 🧥
sock 🧦|boot 👢|cap 🧢|handbag 👜|backpack 🎒|lipstick 💄|trumpet 🎺|violin 🎻|piano 🎹
microphone 🎤|radio 📻|phone 📱|telephone ☎|laptop 💻|television 📺|printer 🖨|candle 🕯
lantern 🏮|newspaper 📰|scroll 📜|coin 🪙|envelope ✉|box 📦|pencil ✏|brush 🖌|lock 🔒|axe 🪓
shield 🛡|bow 🏹|wrench 🔧|gear ⚙|bomb 💣|ladder 🪜|telescope 🔭|microscope 🔬|door 🚪|bed 🛏
couch 🛋|toilet 🚽|bathtub 🛁|bucket 🪣|broom 🧹|basket 🧺|alien 👽|clown 🤡|smiley 🙂
"""

RECOLORED = _words("""
apple pear pepper mushroom cup car train truck boat house tent flower rose tulip cat dog horse
cow pig elephant bear giraffe penguin bird fish whale turtle frog snake butterfly crab octopus
heart star umbrella balloon gift bell hat shirt dress shoe book key chair guitar robot dragon
dinosaur dolphin scooter leaf kite teddy glove coat sock backpack candle
""")
"""Concepts that also appear in other colours than their own."""

PLURALS = {
    "cherry": "cherries", "strawberry": "strawberries", "candy": "candies", "mouse": "mice",
    "butterfly": "butterflies", "teddy": "teddies", "trophy": "trophies", "ladybug": "ladybugs",
    "peach": "peaches", "couch": "couches", "sandwich": "sandwiches", "church": "churches",
    "wrench": "wrenches", "brush": "brushes", "box": "boxes", "fox": "foxes",
    "bus": "buses", "dress": "dresses", "octopus": "octopuses", "cactus": "cacti",
    "leaf": "leaves", "wolf": "wolves", "tomato": "tomatoes", "potato": "potatoes",
    "mango": "mangoes", "volcano": "volcanoes", "factory": "factories",
}  # fmt: skip

COUNTLESS = _words("""
sun moon fire rainbow corn broccoli bread fries popcorn sushi honey milk cheese chocolate
glasses scissors dice sheep fish deer shrimp squid pufferfish jellyfish island mountain
""")
"""Names whose plural is odd, or of which a picture shows only one."""


LEARNT = tuple(_parse(_LEARNT))
"""Names that the decoder is trained on: few enough to be learnt well in an hour on a CPU."""

UNSEEN = tuple(_parse(_UNSEEN))
"""Names that the decoder never sees; the tokenizer and an index may."""

CONCEPTS: dict[str, str] = _parse(_LEARNT) | _parse(_UNSEEN) | _parse(_OTHER)
"""Name -> emoji of everything; the tokenizer learns all of it, so its codes fit other pictures."""


def plural(name: str) -> str:
    return PLURALS.get(name, name + "s")


def article(phrase: str) -> str:
    """`phrase` with "a" or "an" in front."""
    an = phrase[0] in "aeio" or phrase.startswith("umbrella")
    return f"{'an' if an else 'a'} {phrase}"
